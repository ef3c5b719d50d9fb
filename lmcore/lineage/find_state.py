"""Which state of the project a run belongs to: the working tree, an experiment or a commit, as its model says."""

import json
import shlex
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from lmcore.errors import LmcoreError
from lmcore.experiments.store import describe_params
from lmcore.lineage.dvc_files import Project
from lmcore.lineage.history import Commit, History
from lmcore.lineage.lock import Pipeline
from lmcore.lineage.provenance import LINEAGE, MODEL
from lmcore.lineage.remedy import Mismatch
from lmcore.lineage.runs import read_identity
from lmcore.lineage.steps import Trace
from lmcore.params import flatten
from lmcore.tracking.store import StoredRun

SEARCHED_COMMITS = 200  # of those that changed dvc.lock, the newest
SECTIONS = ("model", "train")  # of the parameters, those that a run's key is made from


def find_state(
    found: Trace, key: str, tracked: StoredRun | None, project: Project, history: History, present: Pipeline
) -> tuple[Pipeline, Commit | None] | None:
    """Return the state whose train stage was run `key`: its pipeline, and its commit or None for the working tree.

    The lineage.json of each state says whose model it has. Where neither DVC's cache nor the disk has a state's model
    any more, equal parameters make it likely, and a note in `found` says so. Return None where there is no such
    state, which is a mismatch.
    """
    lineage = project.root / MODEL / LINEAGE
    if lineage.is_file() and read_key(lineage) == key and "train" in present.stages:
        return present, None
    wanted = _read_params(project.root, key, tracked)
    likely: tuple[Pipeline, Commit] | None = None
    for commit, pipeline in _list_states(history, tracked):
        if "train" not in pipeline.stages or MODEL not in pipeline.outputs:
            continue
        place = project.find_recorded(pipeline.outputs[MODEL], LINEAGE)
        if place is not None and read_key(place) == key:
            return pipeline, commit
        if likely is None and place is None and wanted and _agree(wanted, pipeline):
            likely = pipeline, commit
    if likely is None:
        text = f"no commit and no experiment records run {key}, and {MODEL} is not its model"
        found.mismatches.append(Mismatch("run", text, _train_again(wanted, present), "train"))
        return None
    told = "by its parameters: DVC's cache has not the model there, which would prove it"
    found.notes.append(f"taken for {likely[1].name} {told}")
    return likely


def read_key(path: Path) -> str | None:
    """The key of the run that a lineage.json names; None for a damaged one."""
    try:
        values = json.loads(path.read_bytes())
    except ValueError:
        return None
    return values.get("run_key") if isinstance(values, dict) else None


def _list_states(history: History, tracked: StoredRun | None) -> Iterator[tuple[Commit, Pipeline]]:
    """Those that may be a run's: the experiment that MLflow names, the others, and commits that changed dvc.lock."""
    experiment = tracked.tags.get("dvc.exp_name") if tracked else None
    named = history.find_commit(experiment) if experiment else None
    candidates = [*([named] if named else []), *history.list_experiments()]
    for commit in [*candidates, *islice(history.list_commits(), SEARCHED_COMMITS)]:
        try:
            yield commit, history.read_pipeline(commit)
        except LmcoreError:  # a commit from before there was a dvc.lock, or with a torn one
            continue


def _read_params(root: Path, key: str, tracked: StoredRun | None) -> dict[str, str]:
    """The parameters of a run by dotted names, as runs/KEY or MLflow noted them."""
    identity = read_identity(root, key)
    if identity is not None:
        return describe_params(flatten({name: identity.get(name, {}) for name in SECTIONS}))
    return describe_params(tracked.params) if tracked else {}


def _agree(wanted: Mapping[str, str], pipeline: Pipeline) -> bool:
    recorded = describe_params(pipeline.stages["train"].params)
    return all(wanted.get(name) == recorded.get(name) for name in _list_names(wanted, recorded))


def _train_again(wanted: Mapping[str, str], present: Pipeline) -> str:
    """The command that trains with these parameters, by those that params.yaml has otherwise."""
    current = describe_params(flatten(present.params))
    different = [name for name in _list_names(wanted, current) if wanted.get(name) != current.get(name)]
    settings = ["-S " + shlex.quote(f"{name}={wanted.get(name, 'null')}") for name in different]
    return " ".join(["dvc exp run", *settings]) if wanted else "dvc repro"


def _list_names(*params: Mapping[str, str]) -> list[str]:
    """The names of what a run's key is made from."""
    names = {name for values in params for name in values}
    return sorted(name for name in names if name.partition(".")[0] in SECTIONS)
