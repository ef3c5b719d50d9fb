"""A search for the parameters that give the smallest metric: Optuna asks, experiments in DVC's queue answer."""

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcore.errors import ArtifactError, DataError, LmcoreError, ParameterError, suggest
from lmcore.experiments.experiments import read_file
from lmcore.experiments.queue import Attempt, count_workers, find_attempt, run_dvc, run_git
from lmcore.files import derive_seed, read_json
from lmcore.params import flatten, read_params
from lmcore.runtime.locks import hold
from lmcore.runtime.process_pool import count_cores

try:
    import optuna
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState
except ImportError:
    raise LmcoreError("the search needs Optuna: pip install -e '.[search]'") from None

LOOK_SECONDS = 1.0  # from one look at the trials to the next
START_SECONDS = 30.0  # that a worker may take before it can be asked
STARTUP_TRIALS = 4  # that are never stopped: the median of fewer says little
SPACE = re.compile(r"(choice|log|linear)\((.*)\)")


@dataclass(frozen=True)
class Question:
    """What is searched: distributions by parameter, settings that all trials share, and the metric to make small."""

    space: Mapping[str, BaseDistribution]
    fixed: Sequence[str]
    metric: str  # STAGE.NAME: the pipeline runs as far as the stage


def search(
    settings: Sequence[str], metric: str, root: Path, *, trials: int, jobs: int, name: str, seed: int
) -> Iterator[str]:
    """Run trials until the study `name` has so many, `jobs` at once, and tell of each; go on with what there is.

    Each trial is an experiment NAME-NUMBER in DVC's queue, which records it also while no search is there to look. One
    whose validation loss is above the median of the earlier ones at the same step is stopped; its state stays in runs/.

    Raises ParameterError for what is unknown or empty, and for a study of this name that asked something else.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not re.fullmatch(r"[\w.-]+", name):
        raise ParameterError(f"--name {name}: must be of letters, digits and _.-, as the experiments' names begin so")
    question = read_question(settings, metric, root)
    runs = root / "runs"
    runs.mkdir(exist_ok=True)
    with hold(runs / f"search-{name}.lock", f"another search {name} is at work: waiting for it"):
        study = optuna.create_study(
            study_name=name,
            storage=f"sqlite:///{runs / 'search.db'}",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
            load_if_exists=True,
        )
        commit = run_git(root, "rev-parse", "HEAD")
        asked = {"settings": list(settings), "metric": metric, "commit": commit, "seed": seed}
        kept = study.user_attrs.get("question", asked)
        if changed := [f"{key} was {kept[key]}" for key in asked if kept.get(key) != asked[key]]:
            raise ParameterError(f"--name {name}: that search is another one ({'; '.join(changed)}): give a new name")
        study.set_user_attr("question", asked)
        yield from _Search(study, question, root, commit, seed).run(trials, jobs)


def read_question(settings: Sequence[str], metric: str, root: Path) -> Question:
    """`NAME=choice(4,8)`, `log(1e-4,1e-2)` and `linear(0,0.2)` are searched; any other value is every trial's."""
    known = flatten(read_params(root / "params.yaml"))
    stages = read_params(root / "dvc.yaml")["stages"]
    stage, _, measured = metric.partition(".")
    if stage not in stages or not measured:
        raise ParameterError(
            f"--metric {metric}: must be STAGE.NAME as evaluate.bits_per_byte,{suggest(stage, stages, 'there are')}"
        )
    path = root / "reports" / "metrics" / f"{stage}.json"
    if path.exists() and measured not in (there := flatten(read_json(path, f"dvc repro {stage}"))):
        hint = suggest(measured, there, "there are")
        raise ParameterError(f"--metric {metric}: {stage} measures no such thing,{hint}")
    space, fixed = {}, []
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known:
            raise ParameterError(f"-S {setting}: params.yaml has no {name},{suggest(name, known)}")
        if match := SPACE.fullmatch(value.replace(" ", "")):
            space[name] = _read_distribution(setting, match[1], [part for part in match[2].split(",") if part])
        else:
            fixed.append(setting)
    if not space:
        raise ParameterError("nothing to search: give some -S 'NAME=log(1e-4,1e-2)', linear(0,0.2) or choice(4,8)")
    return Question(space, fixed, metric)


def _read_distribution(setting: str, kind: str, parts: Sequence[str]) -> BaseDistribution:
    if kind == "choice":
        if len(set(parts)) < 2:
            raise ParameterError(f"-S {setting}: needs two values or more to choose from")
        return CategoricalDistribution(parts)
    try:
        low, high = map(float, parts)
    except ValueError:
        raise ParameterError(f"-S {setting}: needs two numbers, the lowest and the highest") from None
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ParameterError(f"-S {setting}: both numbers must be finite")
    if not low < high or (kind == "log" and low <= 0):
        rule = " and above 0" if kind == "log" else ""
        raise ParameterError(f"-S {setting}: the range is empty: the first number must be below the second{rule}")
    if all(part.lstrip("-").isdigit() for part in parts):
        return IntDistribution(int(low), int(high), log=kind == "log")
    return FloatDistribution(low, high, log=kind == "log")


class _Search:
    def __init__(self, study: Study, question: Question, root: Path, commit: str, seed: int) -> None:
        self.study, self.question, self.root, self.commit, self.seed = study, question, root, commit, seed
        self.stage, _, self.measured = question.metric.partition(".")
        self.reported: dict[int, int] = {}  # by trials, the last step whose loss Optuna knows

    def run(self, trials: int, jobs: int) -> Iterator[str]:
        """Follow the trials of a search that was killed, start new ones, and say how each ends."""
        for left in self.study.get_trials(states=[TrialState.RUNNING]):
            self.study.enqueue_trial(left.params, {**left.user_attrs, "goes_on": True})
            self.study.tell(left.number, state=TrialState.FAIL)
        active: list[Trial] = []
        while active or self._has_more(trials):
            while len(active) < jobs and self._has_more(trials):
                active.append(trial := self._ask())
                yield f"{self._describe(trial)}: trial {self._count()} of {trials}"
            if count_workers(self.root) < len(active):
                self._start_workers(jobs)
            time.sleep(LOOK_SECONDS)
            for trial in list(active):
                if (outcome := self._look(trial)) is not None:
                    active.remove(trial)
                    yield f"{self._describe(trial)}: {outcome}"
        complete = self.study.get_trials(states=[TrialState.COMPLETE])
        if not complete:
            raise DataError("no trial came to its end: `dvc queue status` and `dvc queue logs NAME` say why")
        best = min(complete, key=lambda trial: trial.value or 0.0)
        yield f"best of {len(complete)}: {self._describe(best)}: {self.question.metric} {best.value:.6g}"
        yield f"`dvc exp apply {best.user_attrs['experiment']}` takes it over, `lmcore compare` shows all"

    def _has_more(self, trials: int) -> bool:
        return self._count() < trials or bool(self.study.get_trials(states=[TrialState.WAITING]))

    def _start_workers(self, jobs: int) -> None:
        """Have so many workers at work, each with its share of the cores unless OMP_NUM_THREADS says otherwise.

        Trainings of all threads each wait for one another's: on two cores two were not through after 250 s, of one
        thread each after 23. DVC starts those that do not answer: before they can, a second call would start them
        twice.
        """
        run_dvc(self.root, "queue", "start", f"--jobs={jobs}", threads=max(1, count_cores() // jobs))
        deadline = time.monotonic() + START_SECONDS
        while count_workers(self.root) < jobs and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)

    def _count(self) -> int:
        """The trials so far; what goes on in another one's place is the same trial."""
        return sum("goes_on" not in trial.user_attrs for trial in self.study.trials)

    def _ask(self) -> Trial:
        """The next trial, its experiment in the queue; one that a killed search left is followed if it still runs."""
        # A seed for each: a search that goes on must not draw again what it has drawn.
        self.study.sampler = optuna.samplers.TPESampler(seed=derive_seed(self.seed, self._count()))
        trial = self.study.ask(dict(self.question.space))
        left = trial.user_attrs.get("experiment")
        if left is None or (self._read_metric(left) is None and find_attempt(self.root, left).state == "lost"):
            name = f"{self.study.study_name}-{trial.number}"
            trial.set_user_attr("experiment", name)
            settings = [*self.question.fixed, *(f"{key}={value}" for key, value in trial.params.items())]
            options = [f"--set-param={setting}" for setting in settings]
            run_dvc(self.root, "exp", "run", "--queue", "--name", name, *options, self.stage)
        return trial

    def _look(self, trial: Trial) -> str | None:
        """How the trial has ended; None as long as it waits or runs, and then it is stopped if others do better."""
        name = trial.user_attrs["experiment"]
        attempt = find_attempt(self.root, name)
        if attempt.state in ("waiting", "running"):
            self._report(trial, attempt)
            if attempt.state == "running" and "stopped_at" not in trial.user_attrs and trial.should_prune():
                trial.set_user_attr("stopped_at", self.reported[trial.number])
                with suppress(ArtifactError):  # it has come to its end meanwhile
                    run_dvc(self.root, "queue", "kill", name)
            return None
        if (value := self._read_metric(name)) is not None and math.isfinite(value):
            self.study.tell(trial, value)
            best = " (the best so far)" if self.study.best_value == value else ""
            return f"{self.question.metric} {value:.6g}{best}"
        if attempt.state == "lost":
            time.sleep(LOOK_SECONDS)  # its worker may be between two steps
            if find_attempt(self.root, name).state != "lost":
                return None
        step = trial.user_attrs.get("stopped_at")
        self.study.tell(trial, state=TrialState.FAIL if step is None else TrialState.PRUNED)
        if step is not None:
            return f"stopped after step {step}, where others were better"
        error = next((line for line in attempt.log.splitlines() if "error: " in line.lower()), "its worker was killed")
        return f"failed: {error}" if value is None else f"failed: {self.question.metric} is {value}"

    def _report(self, trial: Trial, attempt: Attempt) -> None:
        """Tell Optuna the validation losses that the training has logged since the last look."""
        keys = re.findall(r"^run (\w+): (?:starting|going on)", attempt.log, re.M)
        path = self.root / "runs" / keys[-1] / "metrics.jsonl" if keys else None
        if path is None or not path.exists():
            return
        content = path.read_text()
        for line in content[: content.rfind("\n") + 1].splitlines():
            record = json.loads(line)
            loss, step = record.get("val_loss"), record["step"]
            if loss is not None and step > self.reported.get(trial.number, 0):
                trial.report(loss, step)
                self.reported[trial.number] = step

    def _read_metric(self, name: str) -> float | None:
        """What the experiment measured, once DVC has recorded it."""
        try:
            text = read_file(name, self.commit, f"reports/metrics/{self.stage}.json", self.root)
        except ArtifactError:
            return None
        metrics = flatten(json.loads(text))
        if self.measured not in metrics:
            hint = suggest(self.measured, metrics, "there are")
            raise ParameterError(f"--metric {self.question.metric}: {name} has none,{hint}")
        return float(metrics[self.measured])

    def _describe(self, trial: Any) -> str:
        params = trial.params.items()
        values = [f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in params]
        return f"{trial.user_attrs['experiment']} ({', '.join(values)})"
