"""Groups of experiments that differ in their seeds alone, and what their metrics say of one another."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lmcore.experiments.experiments import FINISHED, Experiment
from lmcore.experiments.significance import Difference, adjust_p_values, compare_samples

# Of the initial weights and the order of the text. With another sample.seed the model is the same.
SEEDS = ("train.seed", "seed")
COMMIT = "commit"  # taken for a parameter where the groups are of several


@dataclass(frozen=True)
class Group:
    """Finished experiments of one commit with equal parameters and a seed each; `repeated` have a seed once more."""

    members: tuple[Experiment, ...]
    repeated: tuple[Experiment, ...]

    @property
    def name(self) -> str:
        """That of its first member."""
        return self.members[0].name

    def param(self, name: str) -> str:
        """The value that all members share of a parameter, or of COMMIT; empty where it is not set."""
        return self.members[0].code[:9] if name == COMMIT else self.members[0].params.get(name, "")

    def sample(self, metric: str) -> tuple[float, ...]:
        """What its members have of a metric, as far as it is a number; empty if none has it."""
        found = (member.metrics.get(metric, math.nan) for member in self.members)
        return tuple(value for value in found if math.isfinite(value))


def group_experiments(experiments: Iterable[Experiment]) -> list[Group]:
    """The finished ones in groups, each group where its first member stands."""
    gathered: dict[tuple[object, ...], list[Experiment]] = {}
    for experiment in experiments:
        if experiment.status == FINISHED:
            science = {name: value for name, value in experiment.params.items() if name not in SEEDS}
            gathered.setdefault((experiment.code, *sorted(science.items())), []).append(experiment)
    return [_split_repeated(members) for members in gathered.values()]


def _split_repeated(experiments: Sequence[Experiment]) -> Group:
    """A seed counts once: on a CPU a repetition gives the same bits, and the spread of copies is no spread."""
    first: dict[tuple[str | None, ...], Experiment] = {}
    for experiment in experiments:
        first.setdefault(tuple(experiment.params.get(name) for name in SEEDS), experiment)
    members = tuple(first.values())
    return Group(members, tuple(experiment for experiment in experiments if experiment not in members))


def find_differing(groups: Sequence[Group]) -> list[str]:
    """The parameters, but for seeds, in which the groups are not all alike, in alphabetical order."""
    names = sorted({name for group in groups for name in group.members[0].params} - set(SEEDS))
    return [name for name in names if len({group.param(name) for group in groups}) > 1]


def compare_groups(groups: Sequence[Group], baseline: Group, metric: str) -> list[Difference | None]:
    """How each group's mean of a metric differs from the baseline's, p values corrected for all of these comparisons.

    None of the baseline itself, and where one side has no value.
    """
    base = baseline.sample(metric)
    samples = [() if group is baseline else group.sample(metric) for group in groups]
    found = [compare_samples(base, sample) if base and sample else None for sample in samples]
    adjusted = adjust_p_values([None if difference is None else difference.p_value for difference in found])
    pairs = zip(found, adjusted, strict=True)
    return [difference and replace(difference, p_value=p_value) for difference, p_value in pairs]


def is_count(groups: Iterable[Group], metric: str) -> bool:
    """Whether a metric counts something, such as tokens, of which there is nothing to test."""
    return all(float(value).is_integer() for group in groups for value in group.sample(metric))
