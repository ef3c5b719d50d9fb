"""Where each training sequence gets blocks of masks (TiDAR): a pure function of the seed and the step."""

import torch
from torch import Tensor

from lmcore.files import derive_seed
from lmcore.model.params import DiffusionParams, ModelParams
from lmcore.train.schedule import Schedule


def find_diffusion_start(diffusion: DiffusionParams, steps: int) -> int:
    """The first step, of `steps`, with blocks of masks; all before are those of a GPT."""
    return steps if diffusion.block_size is None else round(diffusion.start_fraction * steps)


def find_stable_end(schedule: Schedule, diffusion: DiffusionParams) -> int | None:
    """The step up to which a longer run is the same: `schedule.stable_end`, or the first block where that comes before.

    From the first step on masks are the same in both.
    """
    start = find_diffusion_start(diffusion, schedule.steps)
    end = schedule.stable_end
    return end if end is None or not start else min(end, start)


def choose_mask_blocks(model: ModelParams, seed: int, steps: int, batch_size: int, step: int) -> Tensor | None:
    """For each sequence of the batch the last token that each of its blocks sees, (batch_size, n); None without any.

    Of a grid of blocks side by side, whose first place is drawn for each sequence (`random_offset`), some are drawn.
    What a block learns does not depend on the others (they do not see each other), so leaving some out saves time and
    is no other task. On a fixed grid, learned positions would tell a mask how far ahead it guesses, which they do not
    when decoding.
    """
    size = model.diffusion.block_size
    if size is None or step < find_diffusion_start(model.diffusion, steps):
        return None
    generator = torch.Generator().manual_seed(derive_seed(seed, step, "blocks"))
    grid = (model.context_length - size) // size
    drawn = torch.rand(batch_size, grid, generator=generator).argsort(dim=1)[:, : model.trained_mask_blocks]
    offsets = torch.randint(size, (batch_size, 1), generator=generator)
    return drawn.sort(dim=1).values * size + (offsets if model.diffusion.random_offset else 0)
