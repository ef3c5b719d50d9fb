"""Registered models: a name and an alias for what a training has made, as `models:/gpt@champion`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmcore.errors import ArtifactError, ParameterError
from lmcore.files import read_json
from lmcore.tracking.logged_models import FINAL, search_models
from lmcore.tracking.store import StoredRun, connect, explain, find_run, read_runs, shown_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion


def register_model(wanted: str, name: str, alias: str, folder: Path) -> list[str]:
    """Make the model of a run a version of the registered model `name`, and give that the `alias`, if any.

    `wanted` is a run's id, key or name; empty, the run that made the model in `folder`. The same model is registered
    once, however often it is asked for. Return lines that say what is registered and how it is served. Raises
    ParameterError for a run that is not there and for a name that MLflow refuses, ArtifactError for a run without a
    model and for a store that does not answer.
    """
    runs = read_runs()
    run = find_run(wanted, runs) if wanted else find_origin(folder, runs)
    if run is None:
        some = ", ".join(known.name for known in runs[-5:]) or "none"
        raise ParameterError(
            f"{wanted}: MLflow at {shown_uri()} has no run with this id, key or name; the last are: {some}"
        )
    from mlflow.exceptions import MlflowException

    try:
        client = connect()
        version = create_version(client, name, find_model(client, run), run.run_id).version
        if alias:
            client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise ParameterError(f"--name {name} --alias {alias}: {explain(error)}") from None
        raise ArtifactError(f"MLflow at {shown_uri()} does not register {name} ({explain(error)})") from None
    told, uri = (f", alias {alias}", f"models:/{name}@{alias}") if alias else ("", f"models:/{name}/{version}")
    loss = run.metrics.get("val_loss")
    measured = "" if loss is None else f", validation loss {loss:.4f}"
    place = f"MLFLOW_TRACKING_URI={shown_uri()} " if os.environ.get("MLFLOW_TRACKING_URI") else ""
    return [
        f"{name} version {version}{told}: run {run.name} ({run.run_id}){measured}",
        f"serve it: {place}mlflow models serve --model-uri {uri} --env-manager local --port 5001",
    ]


def find_origin(folder: Path, runs: Sequence[StoredRun]) -> StoredRun:
    """The newest run that made the model in this folder. Raises ArtifactError without one."""
    key = read_json(folder / "lineage.json", "run dvc repro train, or name a run").get("run_key")
    found = [run for run in runs if run.run_key == key]
    if not found:
        raise ArtifactError(
            f"{folder} was made by run {key}, which MLflow at {shown_uri()} does not have: name a run that it has, or "
            f"set MLFLOW_TRACKING_URI to where it was tracked"
        )
    return found[-1]


def find_model(client: "MlflowClient", run: StoredRun) -> "LoggedModel":
    """The finished model of a run. Raises ArtifactError while there is none."""
    experiment = client.get_run(run.run_id).info.experiment_id
    for model in search_models(client, experiment, run.run_id):
        if model.name == FINAL and model.status == "READY":
            return model
    raise ArtifactError(
        f"run {run.name} ({run.run_id}, {run.status}) has no model: only a training that has come to its end has"
    )


def create_version(client: "MlflowClient", name: str, model: "LoggedModel", run_id: str) -> "ModelVersion":
    """The version of `name` that is this model; a new one if there is none yet."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model.model_id}"
    known = (version for version in client.search_model_versions(f"name = '{name}'") if version.source == source)
    return next(known, None) or client.create_model_version(name, source, run_id, model_id=model.model_id)
