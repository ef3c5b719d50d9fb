"""The trackers of one training: chosen by params.yaml, fed while it runs and by later stages, and waited for."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lmcore.errors import ArtifactError, ParameterError
from lmcore.files import read_json, write_json
from lmcore.params import flatten, parse_section, read_params
from lmcore.runtime.locks import lock
from lmcore.runtime.progress import say, warn
from lmcore.tracking import shipper
from lmcore.tracking.description import Description, TrackedRun, describe_run
from lmcore.tracking.mlflow_backend import MlflowBackend
from lmcore.tracking.params import TrackingParams
from lmcore.tracking.shipper import Backend, Shipper
from lmcore.tracking.store import RUN_KEY_TAG, connect, explain, has_store, legal_name, read_pages, shown_uri
from lmcore.tracking.system import SystemSampler
from lmcore.tracking.tensorboard_backend import TensorBoardBackend
from lmcore.tracking.wandb_backend import WandbBackend

DESCRIPTION = "description.json"  # in runs/KEY: a run that has ended is described by it once more


def plan_tracking(settings: Mapping[str, Any]) -> Callable[[TrackedRun], AbstractContextManager[None]]:
    """How a training is tracked by `settings`, the whole of params.yaml.

    Raises ParameterError for a value that breaks a rule and for a tracker that is not installed.
    """
    return partial(track_run, settings=settings, params=read_tracking(settings))


def read_tracking(settings: Mapping[str, Any]) -> TrackingParams:
    """The tracking section, checked; its trackers are installed."""
    if "tracking" not in settings:
        raise ParameterError("params.yaml has no section tracking: write it, as in the project's own params.yaml")
    return parse_section(TrackingParams, "tracking", settings["tracking"])


@contextmanager
def track_run(tracked: TrackedRun, settings: Mapping[str, Any], params: TrackingParams) -> Iterator[None]:
    """Ship metrics while the block runs; its end decides the run's status.

    `settings` is the whole of params.yaml: what is not the run's own becomes tags, which a resumed run may change.

    A server that is slow or down costs the block nothing: metrics.jsonl keeps every point, and what could not be
    shipped is said in one line at the end.
    """
    description = describe_run(tracked, settings)
    write_json(tracked.folder / DESCRIPTION, asdict(description))
    seconds = params.system_metrics_seconds
    samplers = [SystemSampler(tracked.folder, seconds)] if seconds is not None and params.backends else []
    shippers = open_shippers(tracked.folder, description, params, tracked.artifact)
    for thread in (*samplers, *shippers):
        thread.start()
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (SystemExit, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        for sampler in samplers:
            sampler.finish()
        finish(shippers, status, shipper.FLUSH_SECONDS)


def open_shippers(
    folder: Path, description: Description, params: TrackingParams, artifact: Path | None
) -> list[Shipper]:
    """One for each backend that params.yaml names; `artifact` is the model's folder, if it is still there."""
    seconds = params.system_metrics_seconds
    makers: dict[str, Callable[[], Backend]] = {
        "mlflow": lambda: MlflowBackend(folder, description, params.experiment, artifact),
        "wandb": lambda: WandbBackend(folder, description, params.experiment, seconds),
        "tensorboard": lambda: TensorBoardBackend(folder, description),
    }
    return [Shipper(folder, makers[name]()) for name in params.backends]


def finish(shippers: list[Shipper], status: str, seconds: float) -> bool:
    """Let all of them ship the rest side by side, for so long; whether all of it is stored."""
    for one in shippers:
        one.end(status)
    deadline = time.monotonic() + seconds
    stored = [one.wait(deadline) for one in shippers]  # of each, whatever became of the others
    return all(stored)


def ship_run(key: str, root: Path, settings: Mapping[str, Any]) -> bool:
    """Send what the trackers lack of run `key` (empty: the one that made models/gpt); whether all is stored now.

    Raises ArtifactError for a run that is not there, that was not tracked, or that is being trained.
    """
    params = read_tracking(settings)
    if not params.backends:
        raise ParameterError("tracking.backends is empty: name a tracker to send runs to")
    model = root / "models" / "gpt"
    lineage = model / "lineage.json"
    made_by: str = read_json(lineage, "name a run").get("run_key", "") if lineage.exists() or not key else ""
    key = key or made_by
    folder = root / "runs" / key
    if not key or not folder.is_dir():
        raise ArtifactError(f"{folder} does not exist: name a run as the folder runs/ of this project does")
    description = Description(**read_json(folder / DESCRIPTION, "no training was tracked there"))
    is_complete = (folder / "summary.json").exists()
    if is_complete and made_by != key:
        warn(f"{model} was made by another run since: the model of {key} cannot be sent")
    with (root / "runs" / f"{key}.lock").open("w") as file:
        if not lock(file):
            raise ArtifactError(f"run {key} is being trained, and ships what it has itself")
        shippers = open_shippers(folder, description, params, model if made_by == key else None)
        for one in shippers:
            one.start()
        is_stored = finish(shippers, "FINISHED" if is_complete else "KILLED", float("inf"))
    if is_stored:
        say(f"run {key}: all of it is in {' and '.join(one.backend.label for one in shippers)}")
    return is_stored


def log_results(model: Path, stage: str, metrics: Mapping[str, Any]) -> None:
    """Add what a later stage measured of the model in this folder to its training's run, as `STAGE.NAME`.

    A model that was trained elsewhere has no run here, and gets none; a store that does not answer costs one line.
    """
    key = read_json(model / "lineage.json", "run dvc repro train").get("run_key")
    if key is None or not has_store():
        return
    try:
        if "mlflow" not in read_tracking(read_params()).backends:
            return
        client = connect()  # which also sees to it that importing mlflow starts no telemetry
        from mlflow.entities import Metric

        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        query, order = f"tags.`{RUN_KEY_TAG}` = '{key}'", ["start_time DESC"]
        run = next(read_pages(client.search_runs, experiments, query, order_by=order), None)
        if run is not None:
            now = time.time_ns() // 1_000_000
            points = [
                Metric(legal_name(name), value, now, 0)
                for name, value in flatten({stage: metrics}).items()
                if isinstance(value, int | float)  # not a checksum
            ]
            client.log_batch(run.info.run_id, metrics=points)
    except Exception as error:  # the tracker must never end a stage
        warn(f"MLflow at {shown_uri()} lacks what {stage} measured ({explain(error)}): dvc repro -f -s {stage}")
