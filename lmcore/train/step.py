"""One update: the gradient of the whole batch's mean loss, clipped, applied if it is finite."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmcore.files import derive_seed
from lmcore.hardware.distributed import World
from lmcore.hardware.resolve import Hardware
from lmcore.train.loss import Losses
from lmcore.train.optimizer import set_learning_rate
from lmcore.train.params import TrainParams
from lmcore.train.sharding import gather_tensor, sync_gradients
from lmcore.train.state import TrainState

# Dynamic loss scaling of fp16 (Micikevicius et al., arXiv:1710.03740): halved at an overflow, doubled after so many
# steps without one.
SCALED_STEPS = 2000.0


class Batch(NamedTuple):
    """One process's part of a batch: `windows` (batch, time + 1), inputs and, shifted by one, targets.

    `mask_blocks` (batch, n) are TiDAR's, as in `GPT.hidden`.
    """

    windows: Tensor
    mask_blocks: Tensor | None = None

    def split(self, size: int) -> Iterator["Batch"]:
        """The same in micro-batches."""
        windows = self.windows.split(size)
        mask_blocks = [None] * len(windows) if self.mask_blocks is None else self.mask_blocks.split(size)
        yield from map(Batch, windows, mask_blocks)


def accumulate_gradients(
    state: TrainState, batch: Batch, step: int, params: TrainParams, hardware: Hardware, world: World
) -> Losses:
    """Add the gradient of the batch's mean loss to the weights, one micro-batch at a time; return that loss.

    Each micro-batch counts by its share of all tokens, so that the sum is the mean over the batch however it is cut and
    shared out. Nothing here waits for the device.
    """
    # Dropout masks are a function of the step, hence the same after a resume. (Without CUDA `torch.manual_seed` takes
    # 0.7 ms to note the whole stack for a card that may come.)
    generators = torch.default_generator if batch.windows.device.type == "cpu" else torch
    generators.manual_seed(derive_seed(params.seed, step, world.rank))
    # Processes average their gradients: each counts its own part as the whole.
    scale = state.counters.get("loss_scale", 1.0)
    micro_batches = list(batch.split(hardware.micro_batch_size))
    sums: list[Tensor] = []
    for number, micro_batch in enumerate(micro_batches, 1):
        share = len(micro_batch.windows) / len(batch.windows)
        with sync_gradients(state.objective, number == len(micro_batches)):
            with hardware.autocast():
                windows, mask_blocks = micro_batch
                losses: Losses = state.objective(windows[:, :-1], windows[:, 1:], mask_blocks)
            (losses.total * share * scale).backward()
        shares = [part.detach() * share for part in losses]
        sums = [before + part for before, part in zip(sums, shares, strict=True)] if sums else shares
    return Losses(*(world.all_reduce(each) / world.size for each in sums))


def update_weights(state: TrainState, loss: Tensor, learning_rate: float, params: TrainParams) -> Tensor:
    """Apply the accumulated gradient, unless it or the loss is not finite; return its norm before clipping.

    Whether it is finite is decided and applied on the device: a bad update changes nothing but `skipped_steps`.
    """
    weights = list(state.model.parameters())
    counters = state.counters
    if "loss_scale" in counters:
        torch._foreach_div_([weight.grad for weight in weights if weight.grad is not None], counters["loss_scale"])
    norm = gather_tensor(nn.utils.clip_grad_norm_(weights, params.grad_clip or float("inf")))
    bad = (~(torch.isfinite(loss) & torch.isfinite(norm))).float()
    set_learning_rate(state.optimizers, learning_rate)
    for optimizer in state.optimizers:
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if params.ema_decay is not None:
        names, averages = list(state.average), list(state.average.values())
        named = dict(state.model.named_parameters())
        torch._foreach_lerp_(averages, [named[name].detach() for name in names], 1 - params.ema_decay)
    if "loss_scale" in counters:
        steps = (counters["scaled_steps"] + 1) * (1 - bad)
        grown = (steps >= SCALED_STEPS).float()
        counters["loss_scale"].mul_(torch.exp2(grown - bad))
        counters["scaled_steps"].copy_(steps * (1 - grown))
        bad = (~torch.isfinite(loss)).float()  # an overflow of the scaled gradient is this method's daily life
    counters["skipped_steps"] += bad
    return norm
