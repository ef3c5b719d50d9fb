"""MLflow as a tracker: the run, its description, its metrics, its models."""

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lmcore.files import project_root, write_json
from lmcore.tracking.description import Description
from lmcore.tracking.logged_models import LoggedModels
from lmcore.tracking.spool import Row, read_state
from lmcore.tracking.store import RUN_KEY_TAG, connect, cut_param, legal_name, search_runs, shown_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATE = "mlflow.json"
BIRTH_TAG = "lmcore.birth"  # drawn before the run is created, so that it is created once
TAG_CHARACTERS = 5000  # MLflow's limit for a tag's value
METRICS_PER_BATCH = 900  # MLflow takes at most 1,000 in one call
NAMES_PER_BATCH = 100  # and so many parameters or tags

Item = TypeVar("Item")


class MlflowBackend:
    """One run. Its id and the positions reached are kept in mlflow.json, where a resumed training finds them.

    A point that is sent twice (a kill between sending and noting it) is stored once, because its time stamp comes from
    the spool.
    """

    def __init__(self, folder: Path, description: Description, experiment: str, artifact: Path | None) -> None:
        self.folder, self.description, self.experiment, self.artifact = folder, description, experiment, artifact
        self.client: MlflowClient
        self.models: LoggedModels
        self.run_id = ""

    @property
    def label(self) -> str:
        """MLflow and its address."""
        return f"MLflow at {shown_uri()}"

    def open(self) -> Mapping[str, int]:
        """The run noted before if it still exists, else a new one."""
        self.client = connect(self.experiment)
        state = read_state(self.folder / STATE)
        self.run_id = state.get("run_id", "")
        if self.run_id and self._is_active():
            self.client.update_run(self.run_id, status="RUNNING")
            experiment = self.client.get_run(self.run_id).info.experiment_id
        else:
            known = self.client.get_experiment_by_name(self.experiment)
            assert known is not None  # `connect` has made sure of it
            experiment = known.experiment_id
            birth = state.get("birth") if not self.run_id else None
            state = {"birth": birth or secrets.token_hex(8)}
            write_json(self.folder / STATE, state)
            self.run_id = self._create_run(experiment, state["birth"])
            self.note({})
        self._describe()
        self.models = LoggedModels(self.client, experiment, self.run_id, self.folder)
        positions: dict[str, int] = state.get("positions", {})
        return positions

    def send(self, rows: Sequence[Row]) -> None:
        """Store the points, and look at the checkpoints."""
        from mlflow.entities import Metric

        points = [
            Metric(legal_name(key), value, row.time, row.step) for row in rows for key, value in row.values.items()
        ]
        for batch in batches(points, METRICS_PER_BATCH):
            self.client.log_batch(self.run_id, metrics=batch)
        self.models.follow_checkpoints()

    def note(self, positions: Mapping[str, int]) -> None:
        """Keep them beside the run's id."""
        write_json(self.folder / STATE, {"run_id": self.run_id, "positions": positions})

    def save_model(self) -> None:
        """Upload the model's folder as what `mlflow models serve` serves."""
        self.models.follow_checkpoints()
        if self.artifact is not None:
            self.models.log_final(self.artifact, self.description)

    def close(self, status: str) -> None:
        """Give the run its status and its end."""
        self.client.set_terminated(self.run_id, status)

    def _create_run(self, experiment: str, birth: str) -> str:
        """A run with this mark; a slow server may have made it, even twice, when its answer did not come in time."""
        query = f"tags.`{BIRTH_TAG}` = '{birth}'"
        if not list(search_runs(self.client, [experiment], query, "start_time ASC")):
            self.client.create_run(experiment, tags={BIRTH_TAG: birth}, run_name=self.description.name)
        first, *others = search_runs(self.client, [experiment], query, "start_time ASC")
        for run in others:
            self.client.delete_run(run.info.run_id)
        return str(first.info.run_id)

    def _describe(self) -> None:
        """Parameters, code, machine and data. A resumed run says the same parameters again, which MLflow accepts."""
        from mlflow.entities import Dataset, DatasetInput, Param, RunTag

        about = self.description
        tags = {
            RUN_KEY_TAG: about.run_key,
            **{f"params.{name}": value for name, value in about.settings.items()},
            **{f"hardware.{name}": value for name, value in about.hardware.items()},
            **about.code,
        }
        params = [Param(legal_name(name), cut_param(value)) for name, value in about.params.items()]
        for batch in batches(params, NAMES_PER_BATCH):
            self.client.log_batch(self.run_id, params=batch)
        entries = [RunTag(legal_name(name), str(value)[:TAG_CHARACTERS]) for name, value in tags.items()]
        for chunk in batches(entries, NAMES_PER_BATCH):
            self.client.log_batch(self.run_id, tags=chunk)
        source = json.dumps({"dvc.yaml": str(project_root() / "dvc.yaml")})
        datasets = [
            DatasetInput(Dataset(name, digest[:32], source_type="dvc", source=source))
            for name, digest in about.datasets.items()
        ]
        self.client.log_inputs(self.run_id, datasets=datasets)

    def _is_active(self) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(self.run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items, `size` at a time."""
    items = [*items]
    return (items[start : start + size] for start in range(0, len(items), size))
