"""Runs by their key: what runs/KEY and MLflow noted of them, and the state of the project that each belongs to."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmcore.errors import ArtifactError, LmcoreError
from lmcore.experiments.experiments import describe_params
from lmcore.files import read_json
from lmcore.lineage.dvc_files import Project
from lmcore.lineage.history import Commit, find_commit, list_commits, list_experiments, read_committed
from lmcore.lineage.lock import Pipeline
from lmcore.lineage.provenance import LINEAGE, MODEL, NOT_IDENTITY, read_record, tell_differing
from lmcore.lineage.remedy import Mismatch, make_again
from lmcore.lineage.steps import Trace
from lmcore.params import flatten
from lmcore.tracking.store import StoredRun, cut_param, legal_name
from lmcore.train.run_state import run_key

ROUNDING = 1e-6  # of the losses in lineage.json, which MLflow has in full
LOSSES = ("train_loss", "val_loss", "bits_per_byte")
SEARCHED_COMMITS = 200  # of those that changed dvc.lock, the newest
SECTIONS = ("model.", "train.")  # of the parameters, those that a run's key is made from


def read_identity(root: Path, key: str) -> dict[str, Any] | None:
    """What the key in runs/ was made from; None if the run is not there. Raises ArtifactError for a damaged one."""
    path = root / "runs" / key / "identity.json"
    return read_json(path, f"rm -r runs/{key}") if path.exists() else None


def describe_run(root: Path, key: str) -> dict[str, Any]:
    """What lies in runs/KEY: whether it is complete, its checkpoints, where it branched off, its MLflow run."""
    folder = root / "runs" / key
    if not folder.is_dir():
        return {"key": key, "path": None}
    steps = sorted(int(seal.stem.removeprefix("step-")) for seal in folder.glob("checkpoints/step-*.json"))
    complete = (folder / "summary.json").exists()
    described: dict[str, Any] = {"key": key, "path": f"runs/{key}", "complete": complete, "checkpoints": steps}
    for name in ("branch", "mlflow", "summary"):
        try:
            values = read_json(folder / f"{name}.json", "")
        except LmcoreError:  # most runs have not all of them
            continue
        described |= {"mlflow_run": values.get("run_id")} if name == "mlflow" else {name: values}
    return described


def check_identity(root: Path, key: str) -> Iterator[Mismatch]:
    """Whether runs/KEY is the run that its name says."""
    path, expected = f"runs/{key}", key.removesuffix(".previous")
    try:
        identity = read_identity(root, key)
        found = expected if identity is None else run_key(identity)
        text = f"{path}/identity.json makes the key {found}, not {key}"
    except (ArtifactError, TypeError):
        found, text = None, f"{path}/identity.json is damaged"
    if found != expected:
        yield Mismatch("run", text, f"rm -r {path}", "train", path)


def compare_tracked(run: StoredRun, lineage: Mapping[str, Any]) -> Iterator[Mismatch]:
    """Whether MLflow says of a run what its lineage.json, or identity.json, says."""
    if run.status != "finished":
        yield Mismatch("mlflow", f"MLflow's run {run.name} is {run.status}, not finished", "dvc repro", "train")
    for text in _list_differences(run, lineage):
        yield Mismatch("mlflow", f"MLflow's run {run.name} {text}", make_again("train"), "train")


def _list_differences(run: StoredRun, lineage: Mapping[str, Any]) -> Iterator[str]:
    key = lineage["run_key"]
    if run.run_key != key:
        yield f"is of run {run.run_key}, the model of {key}"
    noted_params = flatten(lineage.get("params") or {})
    params = describe_params({legal_name(name): cut_param(value) for name, value in noted_params.items()})
    if words := tell_differing(describe_params(run.params), params):
        yield f"has other parameters than the model ({words})"
    fingerprints = flatten({name: value for name, value in lineage.items() if name not in NOT_IDENTITY})
    for name, digest in run.datasets.items():
        noted = fingerprints.get(name)
        if isinstance(noted, str) and not noted.startswith(digest):
            yield f"was fed {name} {digest[:12]}, the model {noted[:12]}"
    for name in LOSSES:
        noted = (lineage.get("metrics") or {}).get(name)
        logged = run.metrics.get(name)
        if noted is not None and logged is not None and abs(noted - logged) > ROUNDING:
            yield f"ended with {name} {logged:.6f}, the model with {noted:.6f}"


def find_state(
    found: Trace, key: str, tracked: StoredRun | None, project: Project, present: Pipeline
) -> tuple[Pipeline, Commit | None] | None:
    """Return the state whose train stage was run `key`: its pipeline, and its commit or None for the working tree.

    The lineage.json of each state says whose model it has. Where neither DVC's cache nor the disk has a state's model
    any more, equal parameters make it likely, and a note in `found` says so. Return None where there is no such
    state, which is a mismatch.
    """
    if read_key(project.root / MODEL / LINEAGE) == key and "train" in present.stages:
        return present, None
    identity = read_identity(project.root, key)
    noted = flatten(identity) if identity is not None else tracked.params if tracked else {}
    wanted = describe_params(noted)
    likely: tuple[Pipeline, Commit] | None = None
    for commit, pipeline in _list_states(project.root, tracked):
        if "train" not in pipeline.stages or MODEL not in pipeline.outputs:
            continue
        place = project.find_recorded(pipeline.outputs[MODEL], LINEAGE)
        if read_key(place) == key:
            return pipeline, commit
        if likely is None and place is None and wanted:
            recorded = describe_params(pipeline.stages["train"].params)
            likely = None if _list_differing(wanted, recorded) else (pipeline, commit)
    if likely is None:
        names = _list_differing(wanted, describe_params(flatten(present.params)))
        settings = ["-S " + shlex.quote(f"{name}={wanted.get(name, 'null')}") for name in names]
        remedy = " ".join(["dvc exp run", *settings]) if wanted else "dvc repro"
        text = f"no commit and no experiment records run {key}, and {MODEL} is not its model"
        found.mismatches.append(Mismatch("run", text, remedy, "train"))
    else:
        told = "by its parameters: DVC's cache has not the model there, which would prove it"
        found.notes.append(f"taken for {likely[1].name} {told}")
    return likely


def read_key(path: Path | None) -> str | None:
    """The key of the run that a lineage.json names; None for one that is damaged or not there."""
    return (read_record(path, {"run_key": str}) or {}).get("run_key")


def _list_states(root: Path, tracked: StoredRun | None) -> Iterator[tuple[Commit, Pipeline]]:
    """Those that may be a run's: the experiment that MLflow names, the others, and commits that changed dvc.lock."""
    experiment = tracked.tags.get("dvc.exp_name") if tracked else None
    named = find_commit(root, experiment) if experiment else None
    commits = [*list_experiments(root), *list_commits(root)[:SEARCHED_COMMITS]]
    for commit in [named, *commits] if named else commits:
        try:
            yield commit, read_committed(root, commit)
        except LmcoreError:  # a commit from before there was a dvc.lock, or with a torn one
            continue


def _list_differing(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """The parameters that a run's key is made from and that differ."""
    names = sorted(wanted.keys() | found.keys())
    return [name for name in names if name.startswith(SECTIONS) and wanted.get(name) != found.get(name)]
