"""How long a run is, and its learning rate as a pure function of the step."""

import math
from dataclasses import dataclass

from lmcore.errors import ParameterError
from lmcore.train.params import TrainParams
from lmcore.train.schedule_shapes import SCHEDULES


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each of `steps` updates."""

    params: TrainParams
    steps: int

    def learning_rate(self, step: int) -> float:
        """The learning rate of update `step` (counted from 0).

        Linear warm-up over `warmup_steps` updates to `learning_rate`, then the shape of SCHEDULES that `schedule`
        names, down to `min_learning_rate_ratio` of it at the last update.

            warmup_steps=2, steps=5, min_learning_rate_ratio=0, linear:  0.5  1.0  1.0  0.5  0.0
        """
        return self.params.learning_rate * self._scale(step)

    @property
    def decay_start(self) -> int:
        """The first step whose learning rate depends on how long the run is; up to there a longer run is the same."""
        warmup, stable_end = min(self.params.warmup_steps, self.steps), SCHEDULES[self.params.schedule].stable_end
        return warmup if stable_end is None else max(warmup, stable_end(self.steps, self.params.decay_fraction))

    @property
    def stable_end(self) -> int | None:
        """The step after which a longer run may branch off: the end of the stable phase, if there is one."""
        return None if SCHEDULES[self.params.schedule].stable_end is None else self.decay_start

    def _scale(self, step: int) -> float:
        params, start = self.params, self.decay_start
        if step < params.warmup_steps:
            return (step + 1) / params.warmup_steps
        if step < start:
            return 1.0
        height = SCHEDULES[params.schedule].decay((step - start) / max(1, self.steps - 1 - start))
        return params.min_learning_rate_ratio + (1 - params.min_learning_rate_ratio) * height


def plan_schedule(params: TrainParams, context_length: int, train_tokens: int) -> Schedule:
    """The schedule of a run over `train_tokens` tokens, as long as `max_steps`, `max_tokens` or `epochs` says.

    The last step is a whole one: 1,000 tokens at 300 a step are 4 steps. Raises ParameterError for a warm-up that
    would not end.
    """
    tokens = params.max_tokens if params.epochs is None else round(params.epochs * train_tokens)
    steps = params.max_steps if tokens is None else math.ceil(tokens / (params.batch_size * context_length))
    assert steps is not None
    if params.warmup_steps >= steps:
        raise ParameterError(
            f"train.warmup_steps={params.warmup_steps}: must be below the run's {steps} steps, lower it or train longer"
        )
    return Schedule(params, steps)


def estimate_flops(parameters: int, tokens: int) -> float:
    """Floating-point operations of training: 6 per parameter and token (Kaplan et al., arXiv:2001.08361)."""
    return 6.0 * parameters * tokens
