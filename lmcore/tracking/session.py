"""One tracked run per training, fed from metrics.jsonl by a thread that training never waits for."""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lmcore.files import project_root, read_json, write_json
from lmcore.progress import warn
from lmcore.tracking.run import TrackedRun, describe_code
from lmcore.tracking.store import EXPERIMENT, RUN_KEY_TAG, connect, first_line, flatten, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

SHIP_SECONDS = 10.0  # pause between two batches of metrics: each takes a core from the training for a moment
FLUSH_SECONDS = 60.0  # how long the end of a training waits for a slow server
LONGEST_BACKOFF_SECONDS = 60.0
TAG_CHARACTERS = 5000  # MLflow's limit for a tag's value
METRICS_PER_BATCH = 900  # MLflow takes at most 1,000 in one call


@contextmanager
def track_run(tracked: TrackedRun, settings: Mapping[str, Any]) -> Iterator[None]:
    """Ship metrics while the block runs; its end decides the run's status.

    `settings` is the whole of params.yaml: what is not the run's own becomes tags, which a resumed run may change.

    A server that is slow or down costs the block nothing: metrics.jsonl keeps every point, and what could not be
    shipped is said in one line at the end.
    """
    shipper = Shipper(tracked, settings)
    shipper.start()
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (SystemExit, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        shipper.finish(status)


class Shipper(threading.Thread):
    """Tails metrics.jsonl into MLflow; the run's id and the position reached are kept in mlflow.json.

    A resumed training finds its MLflow run there. A point that is sent twice (a kill between sending and noting it)
    is stored once, because its time stamp comes from the file.
    """

    def __init__(self, tracked: TrackedRun, settings: Mapping[str, Any]) -> None:
        super().__init__(name="mlflow", daemon=True)
        self.tracked = tracked
        self.settings = {
            name: section for name, section in settings.items() if name not in {*tracked.params, "profiles"}
        }
        self.state_path = tracked.folder / "mlflow.json"
        self.metrics_path = tracked.folder / "metrics.jsonl"
        self.status: str | None = None
        self.ending = threading.Event()
        self.shipped = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        """Connect, ship until the training ends, close the run; start again after a failure, ever more slowly."""
        backoff = SHIP_SECONDS
        while True:
            try:
                self._ship_until_ended()
                self.failure = None
                return
            except Exception as error:  # the tracker must never end a training; `finish` reports it
                if self.failure is None:
                    warn(f"MLflow at {tracking_uri()} does not take metrics yet ({first_line(error)}): trying again")
                self.failure = error
                if self.ending.is_set():
                    return
                self.ending.wait(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)

    def finish(self, status: str) -> None:
        """The training is over: wait a while for the last points, then say what is missing."""
        self.status = status
        self.ending.set()
        deadline = time.monotonic() + FLUSH_SECONDS
        while self.is_alive() and not self.shipped.wait(0.05) and time.monotonic() < deadline:
            pass
        if self.shipped.is_set():
            self.join()  # the upload of a large model may take longer than the last points
        if self.is_alive() or self.failure:
            reason = first_line(self.failure) if self.failure else f"still busy after {FLUSH_SECONDS:.0f} s"
            warn(f"MLflow at {tracking_uri()} lacks a part of this run ({reason}): all of it is in {self.metrics_path}")

    def _ship_until_ended(self) -> None:
        client, run_id = self._connect()
        while True:
            ending = self.ending.is_set()
            self._ship(client, run_id)
            if ending:
                break
            self.ending.wait(SHIP_SECONDS)
        self.shipped.set()
        try:
            if self.status == "FINISHED":
                client.log_artifacts(run_id, str(self.tracked.artifact), "model")
        finally:
            client.set_terminated(run_id, self.status)

    def _connect(self) -> tuple["MlflowClient", str]:
        """The client and this training's run: the one noted before if it still exists, else a new one."""
        client = connect()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None
        state = self._read_state()
        run_id = state.get("run_id")
        if run_id and _is_active(client, run_id):
            client.update_run(run_id, status="RUNNING")
        else:
            run_id = client.create_run(
                experiment.experiment_id, run_name=os.environ.get("DVC_EXP_NAME") or self.tracked.folder.name
            ).info.run_id
            write_json(self.state_path, {"run_id": run_id, "shipped_bytes": 0})
        self._describe(client, run_id)
        return client, run_id

    def _describe(self, client: "MlflowClient", run_id: str) -> None:
        """Parameters, code, machine and data. A resumed run says the same parameters again, which MLflow accepts."""
        from mlflow.entities import Dataset, DatasetInput, Param, RunTag

        hardware = {f"hardware.{name}": str(value) for name, value in self.tracked.hardware.items()}
        settings = {f"params.{name}": str(value)[:TAG_CHARACTERS] for name, value in flatten(self.settings).items()}
        tags = {RUN_KEY_TAG: self.tracked.folder.name, **settings, **hardware, **describe_code()}
        client.log_batch(
            run_id,
            params=[Param(name, str(value)) for name, value in flatten(self.tracked.params).items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        source = json.dumps({"dvc.yaml": str(project_root() / "dvc.yaml")})
        datasets = [
            DatasetInput(Dataset(name, str(digest)[:32], source_type="dvc", source=source))
            for name, digest in flatten(self.tracked.datasets).items()
        ]
        client.log_inputs(run_id, datasets=datasets)

    def _ship(self, client: "MlflowClient", run_id: str) -> None:
        """Send the whole lines that metrics.jsonl has gained."""
        from mlflow.entities import Metric

        if not self.metrics_path.exists():
            return
        shipped = int(self._read_state().get("shipped_bytes", 0))
        with self.metrics_path.open("rb") as file:
            file.seek(shipped)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]
        metrics: list[Metric] = []
        for line in content.splitlines():
            record = json.loads(line)
            step, machine = record.pop("step"), record.pop("machine")
            time_stamp = machine.pop("time")
            metrics += [Metric(key, value, time_stamp, step) for key, value in {**record, **machine}.items()]
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_BATCH])
        if content:
            write_json(self.state_path, {"run_id": run_id, "shipped_bytes": shipped + len(content)})

    def _read_state(self) -> dict[str, Any]:
        if not self.state_path.exists():
            return {}
        state: dict[str, Any] = read_json(self.state_path, "remove it to start a new MLflow run")
        return state


def _is_active(client: "MlflowClient", run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
