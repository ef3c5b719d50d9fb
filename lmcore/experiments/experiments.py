"""Experiments by name, with their parameters and metrics: those that DVC keeps in git, commits, MLflow's runs."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

from lmcore.errors import ArtifactError, DataError, ParameterError, nearest
from lmcore.experiments.queue import run_dvc, run_git
from lmcore.params import flatten
from lmcore.tracking.store import SYSTEM_PREFIX, StoredRun, match_runs, read_runs

WORKSPACE = "workspace"
REFERENCE = re.compile("refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)")  # its commit in two parts, its name
MLFLOW = "mlflow:"  # before a name that DVC has too
MAKE_SOME = "`dvc exp run --queue -S train.seed=1,2,3` and `dvc queue start` make some"
FINISHED = "finished"  # of an experiment whose metrics are final
STATUSES = {"success": FINISHED, "scheduled": "queued"}  # of DVC and MLflow, where we say it in another word
# No stage depends on these.
WITHOUT_EFFECT = ("profiles.", "tracking.", "hardware.workers", "hardware.data_engine")


@dataclass(frozen=True)
class Experiment:
    """One training and what was measured of it, by dotted names as `train.seed` and `evaluate.bits_per_byte`.

    `code` is the commit that it was made from, or `workspace`. Parameters are text, as MLflow keeps
    them; those that are not set are left out.
    """

    name: str
    code: str
    status: str
    params: Mapping[str, str] = field(repr=False)
    metrics: Mapping[str, float] = field(repr=False)

    @classmethod
    def describe(
        cls, name: str, code: str, status: str, params: Mapping[str, object], metrics: Mapping[str, object]
    ) -> Self:
        """Return the experiment with the parameters and metrics of a store in our form."""
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        return cls(name, code, STATUSES.get(status, status), describe_params(params), numbers)


def describe_params(values: Mapping[str, object]) -> dict[str, str]:
    """As text, without those that are empty: a parameter that is not set is one that there was not yet."""
    described = {name: _normalise(value) for name, value in values.items() if not name.startswith(WITHOUT_EFFECT)}
    return {name: value for name, value in sorted(described.items()) if value != str(None)}


def _normalise(value: object) -> str:
    """A value as text, alike however it was kept: DVC has 10000.0 or 1 of what is 10000 or 1.0 in MLflow."""
    try:
        return f"{float(str(value)):.15g}"
    except ValueError:
        return str(value)


def list_references(root: Path) -> list[tuple[str, str, str]]:
    """Return of each experiment that DVC keeps in git the name, the commit that it was made from, and the reference."""
    lines = run_git(root, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    matches = [match for line in lines if (match := REFERENCE.fullmatch(line))]
    return [(match[3], match[1] + match[2], match[0]) for match in matches]


def read_experiments(names: Sequence[str], root: Path) -> list[Experiment]:
    """The current commit's experiments, the oldest first, then the workspace, and what `names` ask for beside them.

    Of these, experiments of other commits are taken along with all of their commit; a commit goes by the name that it
    was asked by; names that neither are, are left out. Raises ArtifactError where DVC cannot read the project.
    """
    head = run_git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    if not head:
        raise ArtifactError(f"{root} has no git commit, and DVC keeps experiments in git: commit the project first")
    home = {name: commit for name, commit, _ in list_references(root)}
    commits = {
        name: commit
        for name in names
        if name not in home
        and name != WORKSPACE
        and (commit := run_git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"))
    }
    wanted = dict.fromkeys([head, *commits.values(), *(home[name] for name in names if name in home)])
    try:  # `dvc exp show`, whose JSON is what DVC promises to other programs
        shown = run_dvc(root, "exp", "show", "--json", *(f"--rev={commit}" for commit in wanted))
    except ArtifactError as error:
        raise ArtifactError(f"DVC cannot show the experiments of {root} ({error})") from None
    states = {state["rev"]: state for state in json.loads(shown)}
    found = [
        _describe(entry["revs"][0], entry["name"], commit, (entry["executor"] or {}).get("state"))
        for commit in wanted
        for entry in reversed(states[commit]["experiments"] or [])
    ]
    found.append(_describe(states[WORKSPACE], WORKSPACE, WORKSPACE))
    return found + [_describe(states[commit], name, commit) for name, commit in commits.items()]


def read_file(name: str, code: str, path: str, root: Path) -> str:
    """A file that git keeps, as the experiment or the commit of this name left it; of `workspace`, as it is now.

    `code` is the commit that the experiment was made from. Raises ArtifactError where there is none.
    """
    if name == WORKSPACE and (root / path).exists():
        return (root / path).read_text(encoding="utf-8")
    for revision in (f"refs/exps/{code[:2]}/{code[2:]}/{name}", name):
        if text := run_git(root, "show", f"{revision}:./{path}"):
            return text
    raise ArtifactError(f"{name}: git has no {path} of it; an experiment of DVC has one once its training has ended")


def _describe(state: Mapping[str, Any], name: str | None, code: str, status: str | None = None) -> Experiment:
    """Return DVC's experiment; a metric is called `FILE.NAME`, the file without its ending."""
    data = state["data"] or {}
    if status is None:
        status = "success" if state["error"] is None else "failed"
    params, metrics = (
        {path: file["data"] for path, file in (data.get(kind) or {}).items() if isinstance(file.get("data"), dict)}
        for kind in ("params", "metrics")
    )
    dotted = {key: value for values in params.values() for key, value in flatten(values).items()}
    measured = flatten({PurePosixPath(path).stem: values for path, values in metrics.items()})
    return Experiment.describe(name or state["rev"][:7], code, status, dotted, measured)


def find_experiments(names: Sequence[str], root: Path) -> list[Experiment]:
    """What `names` stand for, each once; without names the DVC experiments of the current commit, the oldest first.

    A name is that of a DVC experiment, `workspace`, a commit, an MLflow run or its id, or an MLflow experiment, which
    stands for its runs. `mlflow:NAME` looks in MLflow alone. Raises ParameterError for a name that nothing has,
    DataError if there are no experiments.
    """
    if not names:
        stored = [experiment for experiment in read_experiments((), root) if experiment.code != WORKSPACE]
        if not stored:
            raise DataError(f"the current commit has no experiments: {MAKE_SOME}; or name what is to be compared")
        return stored
    asked = [name for name in names if not name.startswith(MLFLOW)]
    stored = read_experiments(asked, root) if asked else []
    by_name = {experiment.name: experiment for experiment in reversed(stored)}  # the current commit's win
    runs: list[StoredRun] | None = None
    found: dict[str, Experiment] = {}
    for name in names:
        if name in by_name:
            found[name] = by_name[name]
            continue
        runs = read_runs() if runs is None else runs
        matches = match_runs(name.removeprefix(MLFLOW), runs, "run_id", "name", "experiment")
        if not matches:
            raise ParameterError(_explain_unknown(name, by_name, runs))
        found |= {run.run_id: _from_mlflow(run) for run in matches}
    return list(found.values())


def _explain_unknown(name: str, stored: Mapping[str, Experiment], runs: Sequence[StoredRun]) -> str:
    named = [*stored, *(MLFLOW + word for run in runs for word in (run.name, run.experiment))]
    bare = {word.removeprefix(MLFLOW): word for word in reversed(named)}  # DVC's before MLflow's
    near = nearest(name.removeprefix(MLFLOW), bare)
    hint = f"did you mean {bare[near]}? " if near else ""
    return f"{name}: {hint}no experiment, commit or MLflow run is called so (`dvc exp list --all` names experiments)"


def _from_mlflow(run: StoredRun) -> Experiment:
    metrics = {
        name if "." in name else f"train.{name}": value  # training logs its own without a stage's name
        for name, value in run.metrics.items()
        if not name.startswith(SYSTEM_PREFIX)
    }
    return Experiment.describe(run.name, run.code, run.status, run.params, metrics)
