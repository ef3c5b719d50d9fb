"""What is compared: experiments by name, from DVC or from MLflow, with their parameters and metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lmcore.errors import DataError, ParameterError, nearest
from lmcore.experiments.store import WORKSPACE, Experiment, read_experiments
from lmcore.tracking.store import SYSTEM_PREFIX, StoredRun, read_runs

MLFLOW = "mlflow:"  # before a name that DVC has too
MAKE_SOME = "`dvc exp run --queue -S train.seed=1,2,3` and `dvc queue start` make some"


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
        matches = _match_runs(name.removeprefix(MLFLOW), runs)
        if not matches:
            raise ParameterError(_explain_unknown(name, by_name, runs))
        found |= {run.run_id: _from_mlflow(run) for run in matches}
    return list(found.values())


def _match_runs(name: str, runs: Sequence[StoredRun]) -> list[StoredRun]:
    """Those with this id, else this name, else of this experiment."""
    for kind in ("run_id", "name", "experiment"):
        if matches := [run for run in runs if getattr(run, kind) == name]:
            return matches
    return []


def _explain_unknown(name: str, stored: Mapping[str, Experiment], runs: Sequence[StoredRun]) -> str:
    named = [*stored, *(MLFLOW + word for run in runs for word in (run.name, run.experiment))]
    bare = {word.removeprefix(MLFLOW): word for word in reversed(named)}  # DVC's before MLflow's
    near = nearest(name.removeprefix(MLFLOW), bare)
    hint = f"did you mean {bare[near]}? " if near else ""
    return f"{name}: {hint}no experiment, commit or MLflow run is called so (`dvc exp list --all` names experiments)"


def _from_mlflow(run: StoredRun) -> Experiment:
    measured = {name: value for name, value in run.metrics.items() if not name.startswith(SYSTEM_PREFIX)}
    # Training logs its own metrics without a stage's name.
    metrics = {name if "." in name else f"train.{name}": value for name, value in measured.items()}
    return Experiment.describe(run.name, run.code, run.status, run.params, metrics)
