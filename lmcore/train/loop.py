"""The training loop, as a story; everything beside it arrives as an argument."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from lmcore.hardware.distributed import split_batch
from lmcore.hardware.measure import peak_memory_bytes
from lmcore.hardware.resolve import Hardware
from lmcore.hardware.signals import Interrupt
from lmcore.runtime.progress import TrainingProgress
from lmcore.tokens.batches import Batches
from lmcore.train.checkpoint import Checkpoints
from lmcore.train.mask_blocks import choose_mask_blocks, find_stable_end
from lmcore.train.nan_guard import report_spike, require_few_skipped, require_finite
from lmcore.train.params import TrainParams
from lmcore.train.plan import RunContext
from lmcore.train.run_state import Record, Run
from lmcore.train.sharding import whole_weights
from lmcore.train.state import TrainState
from lmcore.train.step import Batch, accumulate_gradients, update_weights


class ValidationLoss(Protocol):
    """What a validation tells the loop."""

    @property
    def loss(self) -> float:
        """Nats per token."""

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text."""

    @property
    def mask_losses(self) -> Sequence[float]:
        """Nats per token at each mask position of a block; empty without masks."""


Validate = Callable[..., ValidationLoss]  # of a model; `with_masks=True` asks for the losses of its masks too
ChooseBlocks = Callable[[int], Tensor | None]  # of a step, for the whole batch


@dataclass(frozen=True)
class Observers:
    """Log, checkpoints, live progress and signals of a run; `run` is None in all processes but the main one."""

    run: Run | None
    checkpoints: Checkpoints
    progress: TrainingProgress
    interrupt: Interrupt


def train(
    state: TrainState, batches: Batches, context: RunContext, observers: Observers, validate: Validate, step: int
) -> None:
    """Train from `step` updates done to the last one of the schedule.

    Raises TrainingError after too many updates that were not finite; leaves by SystemExit(128 + n) on signal n, state
    saved.
    """
    params, schedule, hardware, world = context.params, context.schedule, context.hardware, context.world
    run, checkpoints, progress = observers.run, observers.checkpoints, observers.progress
    saved_at = time.monotonic()
    stable_end = find_stable_end(schedule, state.model.params.diffusion)
    choose = partial(choose_mask_blocks, state.model.params, params.seed, schedule.steps, batches.batch_size)
    batch = load_batch(batches, choose, step, context)
    while step < schedule.steps:
        learning_rate = schedule.learning_rate(step)
        loss, parts = accumulate_gradients(state, batch, step, params, hardware, world)
        norm = update_weights(state, loss, learning_rate, params)
        step += 1
        if step < schedule.steps:  # the next batch is on its way while the device works
            batch = load_batch(batches, choose, step, context)
        is_last = step == schedule.steps

        # Once in a while: log, and validate.
        record: Record = {"step": step, "tokens": step * batches.tokens_per_step}
        if step % params.log_every == 0 or is_last:
            require_few_skipped(state, params, step, loss, norm)
            record |= name_losses(loss, parts)
            record |= {"learning_rate": learning_rate, "gradient_norm": norm.item()}
        progress.count_step(step)
        if step % params.eval_every == 0 or is_last:
            record |= measure(state, validate, hardware, step, with_masks=batch.mask_blocks is not None)
        if len(record) > 2 and run is not None:
            report_spike(run.records, record)
            run.log(record, **progress.speed, peak_memory_bytes=peak_memory_bytes())
            progress.show(record)

        # Once in a while, at the end and when asked to leave: save. A checkpoint must not know more than the log.
        leaving = world.max(observers.interrupt.signal or 0)
        if is_last or leaving or step == stable_end or world.any(is_checkpoint_due(params, step, saved_at)):
            require_few_skipped(state, params, step, loss, norm)
            tensors = state.collect()
            if run is not None and run.flush():
                val_loss, ends_stable_phase = record.get("val_loss"), step == stable_end
                checkpoints.save(step, tensors, val_loss=val_loss, ends_stable_phase=ends_stable_phase)
            saved_at = time.monotonic()
        if leaving and not is_last:
            raise SystemExit(128 + leaving)
        progress.resume()


def load_batch(batches: Batches, choose: ChooseBlocks, step: int, context: RunContext) -> Batch:
    """The part of `step`'s batch that is this process's, on its device."""
    part, device = split_batch(batches.batch_size, context.world), context.hardware.device
    windows = _send(torch.from_numpy(batches.at(step)[part]), device)
    mask_blocks = choose(step)
    return Batch(windows, None if mask_blocks is None else _send(mask_blocks[part], device))


def _send(tensor: Tensor, device: str) -> Tensor:
    return tensor.pin_memory().to("cuda", non_blocking=True) if device == "cuda" else tensor.to(device)


def name_losses(loss: Tensor, parts: Tensor) -> Record:
    """The batch's losses, as entries of a record; `train_loss` is the next token's, with and without masks."""
    if not len(parts):
        return {"train_loss": loss.item()}
    next_token, *mask_losses = parts.tolist()
    return {"train_loss": next_token, **name_mask_losses("diffusion_loss", mask_losses)}


def name_mask_losses(name: str, losses: Sequence[float]) -> Record:
    """The mean loss of the masks, and that of each position in a block, counted from 1; nothing without masks."""
    if not losses:
        return {}
    return {name: statistics.fmean(losses), **{f"{name}_{place}": loss for place, loss in enumerate(losses, 1)}}


def measure(state: TrainState, validate: Validate, hardware: Hardware, step: int, *, with_masks: bool) -> Record:
    """The validation loss of the weights, or of their moving average if there is one, as entries of a record.

    With `with_masks` also that of the masks, which before their first step would say nothing.
    Every process measures the same: it takes no longer than if the others waited.
    """
    # As written: another batch size and no gradient would be compiled anew.
    eager = torch.compiler.set_stance("force_eager")
    with state.averaged(), whole_weights(state.objective), hardware.autocast(), eager:
        measured = validate(state.model, with_masks=with_masks)
    require_finite(measured.loss, "the validation loss", step)
    losses = {"val_loss": measured.loss, "bits_per_byte": measured.bits_per_byte}
    return {**losses, **name_mask_losses("val_diffusion_loss", measured.mask_losses)}


def is_checkpoint_due(params: TrainParams, step: int, saved_at: float) -> bool:
    """By steps or by minutes, whichever comes first."""
    by_steps, by_minutes = params.checkpoint_every_steps, params.checkpoint_every_minutes
    if by_steps and step % by_steps == 0:
        return True
    return by_minutes is not None and time.monotonic() - saved_at >= 60 * by_minutes
