"""The learning rate as a pure function of the step."""

import math

from lmcore.train.settings import TrainParams


def scale_learning_rate(step: int, params: TrainParams) -> float:
    """The factor on the peak learning rate for update `step` (counted from 0).

    Linear warm-up over `warmup_steps` updates, then from 1 down to `min_learning_rate_ratio` at the last update:
    along a cosine (Loshchilov & Hutter, arXiv:1608.03983), a line, or not at all.

        warmup_steps=2, max_steps=5, min_learning_rate_ratio=0, linear:  0.5  1.0  1.0  0.5  0.0
    """
    if step < params.warmup_steps:
        return (step + 1) / params.warmup_steps
    if params.schedule == "constant":
        return 1.0
    progress = (step - params.warmup_steps) / max(1, params.max_steps - 1 - params.warmup_steps)
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if params.schedule == "cosine" else 1 - progress
    return params.min_learning_rate_ratio + (1 - params.min_learning_rate_ratio) * shape
