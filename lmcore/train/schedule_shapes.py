"""Shapes of the learning rate after the warm-up; one that `train.schedule` may name is an entry of SCHEDULES."""

import math
from collections.abc import Callable
from typing import NamedTuple


class ScheduleShape(NamedTuple):
    """A stable phase at the peak, if there is one, and then a decay.

    `decay` maps the progress of the decay, 0 to 1, to the height between the minimum and the peak, 1 to 0.
    `stable_end` returns the step at which the stable phase ends, of the run's steps and `train.decay_fraction`.
    """

    decay: Callable[[float], float]
    stable_end: Callable[[int, float], int] | None = None


def decay_by_cosine(progress: float) -> float:
    """Return half a cosine (Loshchilov & Hutter, arXiv:1608.03983)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def decay_linearly(progress: float) -> float:
    """Return a line."""
    return 1 - progress


def end_before_decay(steps: int, decay_fraction: float) -> int:
    """Return the first of the last `decay_fraction` of the steps."""
    return steps - round(decay_fraction * steps)


SCHEDULES: dict[str, ScheduleShape] = {
    "cosine": ScheduleShape(decay_by_cosine),
    # warm-up, stable, decay; Hu et al., arXiv:2404.06395
    "wsd": ScheduleShape(decay_linearly, end_before_decay),
    "linear": ScheduleShape(decay_linearly),
    "constant": ScheduleShape(decay_linearly, lambda steps, _: steps),
}
