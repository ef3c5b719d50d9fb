"""Experiments side by side: which parameters differ, what was measured, and which difference is more than chance."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from lmcore.errors import DataError, ParameterError, list_some, suggest
from lmcore.experiments.experiments import FINISHED, MAKE_SOME, Experiment, find_experiments
from lmcore.experiments.groups import COMMIT, Group, compare_groups, find_differing, group_experiments, is_count
from lmcore.experiments.significance import Difference

METRICS = ("evaluate.val_loss", "evaluate.bits_per_byte", "train.tokens")  # those that there are, if none is named


@dataclass(frozen=True)
class Comparison:
    """What a table shows: the groups in the rows' order, and beside them what is not in the rows.

    `metrics` are by name, for each group, the difference from the baseline's mean; None in all where it is a count.
    """

    groups: list[Group]
    baseline: Group
    params: list[str]  # that differ, COMMIT among them
    metrics: dict[str, list[Difference | None] | None]
    unfinished: list[Experiment]

    @property
    def notes(self) -> Iterator[str]:
        """What has to be known to read the table, a line each."""
        count = len(self.groups) - 1
        compared = count > 0 and any(self.metrics.values())
        if compared:
            yield f"differences are from {self.baseline.name}"
        if any(one and one.p_value is not None for found in self.metrics.values() for one in found or ()):
            correction = f", corrected for up to {count} comparisons of a metric (Holm)" if count > 1 else ""
            yield f"±: standard deviation over n seeds; p: Welch's t test{correction}; * p < 0.05"
        single = [group.name for group in self.groups if len(group.members) == 1]
        if compared and single:
            yield (
                f"one seed of {list_some(single, 5)}: nothing can be said about significance there; "
                f"`dvc exp run --queue -S train.seed=1,2,3` with the same parameters makes more"
            )
        for group in self.groups:
            if group.repeated:
                names = list_some([experiment.name for experiment in group.repeated], 5)
                yield f"not counted, because their seed is in the group of {group.name} already: {names}"
        members = [member for group in self.groups for member in group.members]
        for name in self.metrics:
            if diverged := [one.name for one in members if not math.isfinite(one.metrics.get(name, 0.0))]:
                yield f"{name} is no finite number in {list_some(diverged, 5)}: not counted there"
        if self.unfinished:
            told = [f"{experiment.name} ({experiment.status})" for experiment in self.unfinished]
            yield f"not finished, and not counted: {', '.join(told)}"


def compare_experiments(
    names: Sequence[str], root: Path, metrics: Sequence[str] = (), baseline: str = "", sort: str = ""
) -> Comparison:
    """The experiments that `names` stand for (see `find_experiments`) in groups, compared with the baseline's group.

    `baseline` is one of them or another one; without it, it is the first group. Groups stand in the order of `names`,
    or of their parameters; `sort` is a column to order them by, with a minus before it the other way round.

    Raises ParameterError for a metric or a column that there is not, DataError if no experiment has ended.
    """
    experiments = find_experiments(names, root)
    first = [experiment for experiment in experiments if experiment.name == baseline][:1]
    if baseline and not first:
        first = find_experiments([baseline], root)[:1]
    experiments = [*(experiment for experiment in first if experiment not in experiments), *experiments]
    groups = group_experiments(experiments)
    unfinished = [experiment for experiment in experiments if experiment.status != FINISHED]
    if not groups:
        told = ", ".join(f"{experiment.name} is {experiment.status}" for experiment in unfinished)
        raise DataError(f"none of the experiments has finished: {told}; {MAKE_SOME}")
    params = find_differing(groups)
    if not names:
        groups.sort(key=lambda group: [rank(group.param(name)) for name in params])
    if len({group.members[0].code for group in groups}) > 1:
        params = [COMMIT, *params]
    base = _find_group(groups, first[0]) if first else groups[0]
    chosen = choose_metrics(metrics, [member for group in groups for member in group.members])
    if sort:
        groups = _sort_groups(groups, sort, params, chosen)
    measured = {name: None if is_count(groups, name) else compare_groups(groups, base, name) for name in chosen}
    return Comparison(groups, base, params, measured, unfinished)


def choose_metrics(asked: Sequence[str], experiments: Iterable[Experiment]) -> list[str]:
    """What was asked for, or what there is of METRICS. Raises ParameterError for a metric that no experiment has."""
    known = sorted({name for experiment in experiments for name in experiment.metrics})
    for name in asked:
        if name not in known:
            raise ParameterError(f"--metric {name}: no experiment has it,{suggest(name, known, 'there are')}")
    chosen = list(dict.fromkeys(asked)) or [name for name in METRICS if name in known]
    if not chosen:
        raise DataError(
            f"no experiment has {' or '.join(METRICS)}: name others by --metric,{suggest('', known, 'there are')}"
        )
    return chosen


def _find_group(groups: Iterable[Group], experiment: Experiment) -> Group:
    """The one that the experiment is in. Raises ParameterError if it has not finished."""
    for group in groups:
        if experiment in (*group.members, *group.repeated):
            return group
    raise ParameterError(f"--baseline {experiment.name}: it is {experiment.status}, not finished: choose another one")


def _sort_groups(groups: Iterable[Group], sort: str, params: Sequence[str], metrics: Sequence[str]) -> list[Group]:
    """The groups by a column, those without a value last. Raises ParameterError for a column that there is not."""
    name = sort.removeprefix("-")
    if name not in (*params, *metrics):
        hint = suggest(name, [*params, *metrics], "there are")
        raise ParameterError(f"--sort {sort}: the table has no such column,{hint}")

    def value(group: Group) -> float | str | None:
        if name not in metrics:
            return group.param(name)
        return fmean(sample) if (sample := group.sample(name)) else None

    ranked = sorted(groups, key=lambda group: rank(value(group)), reverse=sort.startswith("-"))
    return sorted(ranked, key=lambda group: value(group) is None)


def rank(value: object) -> tuple[bool, float, str]:
    """Numbers by their size, before words by the alphabet."""
    try:
        return False, float(str(value)), ""
    except ValueError:
        return True, 0.0, str(value)
