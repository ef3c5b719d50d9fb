"""Runs by their key, name or id: what runs/KEY and MLflow noted of them, and whether that is what a model says."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmcore.errors import ArtifactError, LmcoreError
from lmcore.experiments.store import describe_params
from lmcore.files import read_json
from lmcore.lineage.provenance import NOT_IDENTITY, tell_differing
from lmcore.lineage.remedy import Mismatch, make_again
from lmcore.params import flatten
from lmcore.tracking.store import StoredRun, cut_param, legal_name
from lmcore.train.run_state import run_key

ROUNDING = 1e-6  # of the losses in lineage.json, which MLflow has in full
LOSSES = ("train_loss", "val_loss", "bits_per_byte")


def read_identity(root: Path, key: str) -> dict[str, Any] | None:
    """What the key in runs/ was made from; None if the run is not there. Raises ArtifactError for a damaged one."""
    path = root / "runs" / key / "identity.json"
    if not path.exists():
        return None
    identity: dict[str, Any] = read_json(path, f"rm -r runs/{key}")
    return identity


def describe_run(root: Path, key: str) -> dict[str, Any]:
    """What lies in runs/KEY: whether it is complete, its checkpoints, where it branched off, its MLflow run."""
    folder = root / "runs" / key
    described: dict[str, Any] = {"key": key, "path": f"runs/{key}" if folder.is_dir() else None}
    if folder.is_dir():
        described["complete"] = (folder / "summary.json").exists()
        described["checkpoints"] = sorted(
            int(seal.stem.removeprefix("step-")) for seal in (folder / "checkpoints").glob("step-*.json")
        )
        for name in ("branch", "mlflow", "summary"):
            try:
                values = read_json(folder / f"{name}.json", "")
            except LmcoreError:  # most runs have not all of them
                continue
            described |= {"mlflow_run": values.get("run_id")} if name == "mlflow" else {name: values}
    return described


def check_identity(root: Path, key: str) -> Iterator[Mismatch]:
    """Whether runs/KEY is the run that its name says."""
    remedy = f"rm -r runs/{key}"
    try:
        identity = read_identity(root, key)
        found = None if identity is None else run_key(identity)
    except (ArtifactError, TypeError):
        yield Mismatch("run", f"runs/{key}/identity.json is damaged", remedy, "train", f"runs/{key}")
        return
    if found is not None and found != key.removesuffix(".previous"):
        text = f"runs/{key}/identity.json makes the key {found}, not {key}"
        yield Mismatch("run", text, remedy, "train", f"runs/{key}")


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
