"""MLflow as a tracker: the run, its description, its metrics, its models."""

import json
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmcore.files import project_root, write_json
from lmcore.tracking.description import Description
from lmcore.tracking.logged_models import LoggedModels
from lmcore.tracking.shipper import Backend
from lmcore.tracking.spool import Row, read_state
from lmcore.tracking.store import RUN_KEY_TAG, connect, cut_param, legal_name, read_pages, shown_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATE = "mlflow.json"
BIRTH_TAG = "lmcore.birth"  # drawn before the run is created, so that it is created once
TAG_CHARACTERS = 5000  # MLflow's limit for a tag's value
METRICS_PER_BATCH = 900  # MLflow takes at most 1,000 in one call
NAMES_PER_BATCH = 100  # and so many parameters or tags


class MlflowBackend(Backend):
    """One run. Its id and the positions reached are kept in mlflow.json, where a resumed training finds them.

    A point that is sent twice (a kill between sending and noting it) is stored once, because its time stamp comes from
    the spool.
    """

    def __init__(self, folder: Path, description: Description, experiment: str, artifact: Path | None) -> None:
        self.folder, self.description, self.experiment, self.artifact = folder, description, experiment, artifact
        self.label = f"MLflow at {shown_uri()}"
        self.client: MlflowClient
        self.models: LoggedModels
        self.run_id = ""

    def open(self) -> Mapping[str, int]:
        """The run noted before if it still exists, else a new one."""
        self.client = connect(self.experiment)
        state = read_state(self.folder / STATE)
        self.run_id = state.get("run_id", "")
        if (experiment := self._find_experiment()) is not None:
            self.client.update_run(self.run_id, status="RUNNING")
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
        self._log("metrics", points, METRICS_PER_BATCH)
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
        find = partial(read_pages, self.client.search_runs, [experiment], query, order_by=["start_time ASC"])
        if not list(find()):
            self.client.create_run(experiment, tags={BIRTH_TAG: birth}, run_name=self.description.name)
        first, *others = find()
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
        self._log("params", params, NAMES_PER_BATCH)
        entries = [RunTag(legal_name(name), str(value)[:TAG_CHARACTERS]) for name, value in tags.items()]
        self._log("tags", entries, NAMES_PER_BATCH)
        source = json.dumps({"dvc.yaml": str(project_root() / "dvc.yaml")})
        datasets = [
            DatasetInput(Dataset(name, digest[:32], source_type="dvc", source=source))
            for name, digest in about.datasets.items()
        ]
        self.client.log_inputs(self.run_id, datasets=datasets)

    def _log(self, kind: str, items: Sequence[Any], size: int) -> None:
        """Send `metrics`, `params` or `tags`, `size` in a call."""
        for start in range(0, len(items), size):
            batch: dict[str, Any] = {kind: items[start : start + size]}
            self.client.log_batch(self.run_id, **batch)

    def _find_experiment(self) -> str | None:
        """The experiment (id) of the run noted before; None without one, and if it was deleted."""
        from mlflow.exceptions import MlflowException

        if not self.run_id:
            return None
        try:
            info = self.client.get_run(self.run_id).info
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return str(info.experiment_id) if info.lifecycle_stage == "active" else None
