"""A run's models in MLflow: every checkpoint as an entry with its validation loss, and the finished model whole."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmcore.tracking.description import Description
from lmcore.tracking.mlflow_packaging import save_served_model
from lmcore.tracking.spool import METRICS, find_row
from lmcore.tracking.store import RUN_KEY_TAG, read_pages

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

FINAL = "model"
REQUEST_SECONDS = "MLFLOW_HTTP_REQUEST_TIMEOUT"
CHECKPOINT = "checkpoint"  # the type of these models, which has no files in MLflow
SLOW_BYTES_PER_SECOND = 20_000_000
STATE_TAG = "lmcore.state"  # of a checkpoint: `kept` on the disk of its machine, or `pruned` since


class LoggedModels:
    """What MLflow has of one run's models. It is asked once; a resumed run finds there what was logged before."""

    def __init__(self, client: "MlflowClient", experiment: str, run_id: str, folder: Path) -> None:
        self.client, self.experiment, self.run_id, self.folder = client, experiment, run_id, folder
        self.known: dict[str, LoggedModel] = {}
        for model in search_models(client, experiment, run_id):
            if model.name in self.known:  # made twice, because a slow server's answer did not come in time
                client.delete_logged_model(model.model_id)
            else:
                self.known[model.name] = model
        self.states = {
            name: model.tags.get(STATE_TAG, "") for name, model in self.known.items() if model.status == "READY"
        }

    def follow_checkpoints(self) -> None:
        """Log the checkpoints that have come and tag those that have gone.

        A checkpoint counts from its seal on (see lmcore.train.checkpoint). One that came and went between two looks is
        not here.
        """
        seals = {f"{CHECKPOINT}-{seal['step']}": seal for seal in read_seals(self.folder / "checkpoints")}
        for name in seals.keys() - self.states.keys():
            seal = seals[name]
            tags = {"sha256": seal["sha256"], "bytes": str(seal["bytes"]), STATE_TAG: "kept"}
            model = self._begin(name, seal["step"], tags, kind=CHECKPOINT)
            self.client.finalize_logged_model(model.model_id, "READY")
            self.states[name] = "kept"
        for name, state in [*self.states.items()]:
            now = "kept" if name in seals else "pruned"
            if name.startswith(CHECKPOINT) and state != now:
                self.client.set_logged_model_tags(self.known[name].model_id, {STATE_TAG: now})
                self.states[name] = now

    def log_final(self, artifact: Path, description: Description) -> None:
        """Upload the finished model, once: a run that was killed afterwards and resumed has made the same one."""
        from mlflow.models import Model

        if FINAL in self.known and self.known[FINAL].status == "READY":
            return
        model = self._begin(FINAL, None, {}, kind="pyfunc")
        place, usual = self.folder / "served_model", os.environ[REQUEST_SECONDS]
        shutil.rmtree(place, ignore_errors=True)  # of a killed one
        try:
            account = Model(
                artifact_path=model.artifact_location,
                model_uuid=model.model_id,
                run_id=self.run_id,
                model_id=model.model_id,
            )
            save_served_model(place, artifact, description.settings, account)
            # A request that uploads a file may take as long as the largest one needs on a slow server.
            largest = max(path.stat().st_size for path in place.rglob("*"))
            os.environ[REQUEST_SECONDS] = str(int(usual) + largest // SLOW_BYTES_PER_SECOND)
            self.client.log_model_artifacts(model.model_id, str(place))
        finally:
            os.environ[REQUEST_SECONDS] = usual
            shutil.rmtree(place, ignore_errors=True)
        self.known[FINAL] = self.client.finalize_logged_model(model.model_id, "READY")

    def _begin(self, name: str, step: int | None, tags: dict[str, str], *, kind: str) -> "LoggedModel":
        """An entry that is tied to the run and to the losses of its step; without one, to the last losses.

        One that a kill left half done is reused.
        """
        from mlflow.entities import LoggedModelOutput, Metric

        if name not in self.known:
            tags = {RUN_KEY_TAG: self.folder.name, **tags}
            self.known[name] = self.client.create_logged_model(
                self.experiment, name=name, source_run_id=self.run_id, tags=tags, model_type=kind
            )
        model, row = self.known[name], find_row(self.folder / METRICS, step)
        if row is not None:
            # With the time of the log: the run has these points already, and only the model gains them.
            losses = {key: value for key, value in row.values.items() if key in ("val_loss", "bits_per_byte")}
            points = [Metric(key, value, row.time, row.step, model.model_id) for key, value in losses.items()]
            self.client.log_batch(self.run_id, metrics=points)
        outputs = self.client.get_run(self.run_id).outputs
        if not outputs or model.model_id not in {output.model_id for output in outputs.model_outputs}:
            self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, row.step if row else 0)])
        return model


def search_models(client: "MlflowClient", experiment: str, run_id: str) -> "list[LoggedModel]":
    """A run's models, those that are complete before the others."""
    found = read_pages(client.search_logged_models, [experiment], f"source_run_id = '{run_id}'")
    return sorted(found, key=lambda model: model.status != "READY")


def read_seals(folder: Path) -> list[dict[str, Any]]:
    """The seals of a run's checkpoints, the first step first."""
    seals = []
    for path in sorted(folder.glob("step-*.json")):
        try:
            seal = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # pruned at this moment; or damaged, which a resuming training says
            continue
        if {"step", "sha256", "bytes"} <= seal.keys():
            seals.append(seal)
    return seals
