"""What is compared: experiments by name, from DVC or from MLflow, with their parameters and metrics."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmcore.errors import DataError, ParameterError
from lmcore.experiments.store import StoredExperiment, read_experiments
from lmcore.tracking.store import SYSTEM_PREFIX, StoredRun, read_runs

MLFLOW = "mlflow:"  # before a name that DVC has too
FINISHED = "finished"
# No stage depends on these.
WITHOUT_EFFECT = ("profiles.", "tracking.", "hardware.workers", "hardware.data_engine")
STATUSES = {"success": FINISHED, "scheduled": "queued"}  # of both, where we say it in another word
MAKE_SOME = "`dvc exp run --queue -S train.seed=1,2,3` and `dvc queue start` make some"


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

    @property
    def is_finished(self) -> bool:
        """Whether its metrics are final."""
        return self.status == FINISHED


def find_experiments(names: Sequence[str], root: Path) -> list[Experiment]:
    """What `names` stand for, each once; without names the DVC experiments of the current commit, the oldest first.

    A name is that of a DVC experiment, `workspace`, a commit, an MLflow run or its id, or an MLflow experiment, which
    stands for its runs. `mlflow:NAME` looks in MLflow alone. Raises ParameterError for a name that nothing has,
    DataError if there are no experiments.
    """
    if not names:
        stored = [experiment for experiment in read_experiments((), root) if experiment.is_of_head]
        if not stored:
            raise DataError(f"the current commit has no experiments: {MAKE_SOME}; or name what is to be compared")
        return [_from_dvc(experiment) for experiment in stored]
    asked = [name for name in names if not name.startswith(MLFLOW)]
    stored = read_experiments(asked, root) if asked else []
    by_name = {experiment.name: _from_dvc(experiment) for experiment in reversed(stored)}  # the current commit's win
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
    near = difflib.get_close_matches(name.removeprefix(MLFLOW), bare, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(bare[word] for word in near)}? " if near else ""
    return f"{name}: {hint}no experiment, commit or MLflow run is called so (`dvc exp list --all` names experiments)"


def _from_dvc(stored: StoredExperiment) -> Experiment:
    status = STATUSES.get(stored.status, stored.status)
    return Experiment(stored.name, stored.code, status, describe_params(stored.params), _keep_numbers(stored.metrics))


def _from_mlflow(run: StoredRun) -> Experiment:
    measured = {name: value for name, value in run.metrics.items() if not name.startswith(SYSTEM_PREFIX)}
    # Training logs its own metrics without a stage's name.
    metrics = {name if "." in name else f"train.{name}": value for name, value in measured.items()}
    status = STATUSES.get(run.status, run.status)
    return Experiment(run.name, run.code, status, describe_params(run.params), _keep_numbers(metrics))


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


def _keep_numbers(values: Mapping[str, object]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
