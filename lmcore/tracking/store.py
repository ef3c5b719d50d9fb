"""The MLflow store: where it is, how it is opened, and the runs that it holds."""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmcore.errors import ArtifactError, ParameterError
from lmcore.files import project_root
from lmcore.runtime.locks import lock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "lmcore"
PARAM_CHARACTERS = 6000  # that MLflow keeps of a parameter
RUN_KEY_TAG = "lmcore.run_key"
SYSTEM_PREFIX = "system/"  # of metrics of the machine, which MLflow shows on a page of their own

# Read by mlflow when it is imported: no telemetry, and a dead server answers in seconds, not after 247 of them.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}

# Else the pages are those of applications that call models.
KIND = {"mlflow.experimentKind": "custom_model_development"}
REASONS = ("Connection refused", "Timed out", "Name or service not known", "No route to host")


@dataclass(frozen=True)
class StoredRun:
    """A run as MLflow keeps it: parameters by dotted names, as text, and the last value of every metric.

    `code` is the commit that it was made from; for a DVC experiment, the one that this was begun from. `run_key` is the
    name of its folder runs/KEY, empty for a run that is not a training of ours; `datasets` are the fingerprints,
    cut, of what it was fed, by dotted names.
    """

    run_id: str
    run_key: str
    name: str
    experiment: str
    status: str
    code: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    datasets: Mapping[str, str]


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI if set, else the SQLite file that a plain `mlflow ui` in the project's root shows."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root()}/mlflow.db"


def shown_uri() -> str:
    """The address without a password, for messages."""
    return re.sub(r"(://[^/@:]*):.*@", r"\1:***@", tracking_uri())


def has_store() -> bool:
    """False where nothing was ever tracked: opening the store would make one."""
    store = project_root() / "mlflow.db"
    return not tracking_uri().endswith(str(store)) or store.exists()


def connect(experiment: str = EXPERIMENT) -> "MlflowClient":
    """A client whose store and experiment exist.

    The lock is there because processes that create the same SQL store at once crash each other and can leave it
    broken for good (3 trials of 3).
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.store.db import utils

    for noisy in ("mlflow", "alembic"):  # mlflow sets its own levels when it is imported
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # A database that is away would be tried for 100 s, with four lines of warning each time; who ships tries again.
    utils.MAX_RETRY_COUNT = 1
    root, uri = project_root(), tracking_uri()
    with (root / ".mlflow.lock").open("w") as file:
        lock(file, wait=True)
        client = MlflowClient(tracking_uri=uri)
        if client.get_experiment_by_name(experiment) is None:
            # Without a location MLflow would take the current folder, which in an experiment is a temporary one.
            location = None if uri.startswith(("http:", "https:", "databricks")) else str(root / "mlruns")
            client.create_experiment(experiment, artifact_location=location, tags=KIND)
    return client


def read_runs() -> list[StoredRun]:
    """Every run that was not deleted, the oldest first; none where there is no store yet.

    Raises ArtifactError for a store that does not answer.
    """
    if not has_store():
        return []
    try:
        client = connect()
        experiments = {experiment.experiment_id: experiment.name for experiment in client.search_experiments()}
        runs = list(read_pages(client.search_runs, list(experiments), order_by=["start_time ASC"]))
    except Exception as error:  # of many kinds: MLflow's own, SQLAlchemy's, requests'
        raise ArtifactError(f"MLflow at {shown_uri()} does not answer ({explain(error)})") from None
    return [_describe_run(run, experiments[run.info.experiment_id]) for run in runs]


def find_run(wanted: str, runs: Sequence[StoredRun]) -> StoredRun | None:
    """The run with this id, else the newest with this key, else the one with this name.

    Raises ParameterError for a name that several have.
    """
    found = match_runs(wanted, runs, "run_id", "run_key", "name") if wanted else []
    if len({run.run_key for run in found}) > 1:
        ids = ", ".join(run.run_id for run in found[-3:])
        raise ParameterError(
            f"{wanted}: {len(found)} MLflow runs are called so: name one by its id, the last are {ids}"
        )
    return found[-1] if found else None


def match_runs(wanted: str, runs: Sequence[StoredRun], *fields: str) -> list[StoredRun]:
    """The runs with this value of a field, the first of the `fields` that any of them has it in."""
    found = ([run for run in runs if getattr(run, field) == wanted] for field in fields)
    return next(filter(None, found), [])


def read_pages(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
    """Yield what a search of MLflow's client finds, page by page."""
    token: str | None = ""
    while token is not None:
        page = search(*arguments, page_token=token or None, **options)
        yield from page
        token = page.token or None


def _describe_run(run: "Run", experiment: str) -> StoredRun:
    tags = run.data.tags
    settings = {name.removeprefix("params."): value for name, value in tags.items() if name.startswith("params.")}
    inputs = run.inputs.dataset_inputs if run.inputs else ()
    return StoredRun(
        run_id=run.info.run_id,
        run_key=tags.get(RUN_KEY_TAG, ""),
        name=run.info.run_name,
        experiment=experiment,
        status=run.info.status.lower(),
        code=tags.get("dvc.baseline_rev") or tags.get("git.commit") or "",
        params={**settings, **run.data.params},
        metrics=run.data.metrics,
        tags=tags,
        datasets={each.dataset.name: each.dataset.digest for each in inputs},
    )


def cut_param(value: object) -> str:
    """A parameter's value as MLflow keeps it: text, of a bounded length."""
    return str(value)[:PARAM_CHARACTERS]


def legal_name(name: str) -> str:
    """A name of a parameter or metric as MLflow allows it: a source of text may be called `web+books`."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def explain(error: Exception) -> str:
    """What it says, in one line; for a database of another MLflow, what mends it."""
    text = str(error).strip().replace(tracking_uri(), shown_uri())
    text = re.sub("^[A-Z_]+: ", "", text) or type(error).__name__  # without MLflow's codes
    if "out-of-date database schema" in text:
        return f"the database is another MLflow version's: back it up, then `mlflow db upgrade {shown_uri()}`"
    # The reason, from among the names of the classes and the retries that it went through.
    known = next((reason for reason in REASONS if reason.lower() in text.lower()), None)
    return known or text.splitlines()[0][:200]
