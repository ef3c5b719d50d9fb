"""The training loop, as a story; everything beside it arrives as an argument."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from lmcore.hardware.distributed import World, split_batch
from lmcore.hardware.measure import peak_memory_bytes
from lmcore.hardware.resolve import Hardware
from lmcore.model.gpt import GPT
from lmcore.runtime.progress import TrainingProgress
from lmcore.tokens.batches import Batches
from lmcore.train.checkpoint import Checkpoints
from lmcore.train.nan_guard import report_spike, require_few_skipped, require_finite
from lmcore.train.params import TrainParams
from lmcore.train.run_state import Record, Run
from lmcore.train.schedule import Schedule
from lmcore.train.sharding import whole_weights
from lmcore.train.signals import Interrupt
from lmcore.train.state import TrainState
from lmcore.train.step import Batch, accumulate_gradients, update_weights
from lmcore.train.tidar_blocks import choose_blocks, find_trunk


class ValidationLoss(Protocol):
    """What a validation tells the loop."""

    @property
    def loss(self) -> float:
        """Nats per token."""

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text."""

    @property
    def slots(self) -> Sequence[float]:
        """Nats per token of the masks at each place of a block; empty without masks."""


class Validate(Protocol):
    """Measures a model."""

    def __call__(self, model: GPT, /, *, slots: bool) -> ValidationLoss:
        """`slots` asks for those of its masks too."""


ChooseBlocks = Callable[[int], Tensor | None]  # of a step, for the whole batch


def train(
    state: TrainState,
    batches: Batches,
    schedule: Schedule,
    params: TrainParams,
    hardware: Hardware,
    world: World,
    *,
    step: int,
    validate: Validate,
    run: Run | None,
    checkpoints: Checkpoints,
    progress: TrainingProgress,
    interrupt: Interrupt,
) -> None:
    """Train from `step` updates done to the last one of `schedule`. `run` is None in all processes but the main one.

    Raises TrainingError after too many updates that were not finite; leaves by SystemExit(128 + n) on signal n, state
    saved.
    """
    saved_at = time.monotonic()
    trunk = find_trunk(schedule, state.model.params.diffusion)
    choose = partial(choose_blocks, state.model.params, params.seed, schedule.steps, batches.batch_size)
    batch = load_batch(batches, choose, step, hardware, world)
    while step < schedule.steps:
        learning_rate = schedule.learning_rate(step)
        loss, parts = accumulate_gradients(state, batch, step, params, hardware, world)
        norm = update_weights(state, loss, learning_rate, params)
        step += 1
        if step < schedule.steps:  # the next batch is on its way while the device works
            batch = load_batch(batches, choose, step, hardware, world)
        is_last = step == schedule.steps

        # Once in a while: log, and validate.
        record: Record = {"step": step, "tokens": step * batches.tokens_per_step}
        if step % params.log_every == 0 or is_last:
            require_few_skipped(state, params, step, loss, norm)
            record |= name_losses(loss, parts)
            record |= {"learning_rate": learning_rate, "gradient_norm": norm.item()}
        progress.count_step(step)
        if step % params.eval_every == 0 or is_last:
            record |= measure(state, validate, hardware, step, slots=batch.blocks is not None)
        if len(record) > 2 and run is not None:
            report_spike(run.records, record)
            run.log(record, **progress.speed, peak_memory_bytes=peak_memory_bytes())
            progress.show(record)

        # Once in a while, at the end and when asked to leave: save. A checkpoint must not know more than the log.
        leaving = world.max(interrupt.signal or 0)
        if is_last or leaving or step == trunk or world.any(is_checkpoint_due(params, step, saved_at)):
            require_few_skipped(state, params, step, loss, norm)
            tensors = state.collect()
            if run is not None and run.flush():
                checkpoints.save(step, tensors, val_loss=record.get("val_loss"), is_trunk=step == trunk)
            saved_at = time.monotonic()
        if leaving and not is_last:
            raise SystemExit(128 + leaving)
        progress.resume()


def load_batch(batches: Batches, choose: ChooseBlocks, step: int, hardware: Hardware, world: World) -> Batch:
    """The part of `step`'s batch that is this process's, on its device."""
    part = split_batch(batches.batch_size, world)
    windows = _send(torch.from_numpy(batches.at(step)[part]), hardware.device)
    blocks = choose(step)
    return Batch(windows, None if blocks is None else _send(blocks[part], hardware.device))


def _send(tensor: Tensor, device: str) -> Tensor:
    return tensor.pin_memory().to("cuda", non_blocking=True) if device == "cuda" else tensor.to(device)


def name_losses(loss: Tensor, parts: Tensor) -> Record:
    """The batch's losses, as entries of a record; `train_loss` is the next token's, with and without masks."""
    if not len(parts):
        return {"train_loss": loss.item()}
    next_token, *slots = parts.tolist()
    return {"train_loss": next_token, **name_slots("diffusion_loss", slots)}


def name_slots(name: str, slots: Sequence[float]) -> Record:
    """What masks lose: all of them together, and each place of a block, counted from 1; nothing without masks."""
    if not slots:
        return {}
    return {name: statistics.fmean(slots), **{f"{name}_{place}": loss for place, loss in enumerate(slots, 1)}}


def measure(state: TrainState, validate: Validate, hardware: Hardware, step: int, *, slots: bool) -> Record:
    """The validation loss of the weights, or of their moving average if there is one, as entries of a record.

    With `slots` also that of the masks, which before their first step would say nothing.
    Every process measures the same: it takes no longer than if the others waited.
    """
    # As written: another batch size and no gradient would be compiled anew.
    eager = torch.compiler.set_stance("force_eager")
    with state.averaged(), whole_weights(state.objective), hardware.autocast(), eager:
        measured = validate(state.model, slots=slots)
    require_finite(measured.loss, "the validation loss", step)
    losses = {"val_loss": measured.loss, "bits_per_byte": measured.bits_per_byte}
    return {**losses, **name_slots("val_diffusion_loss", measured.slots)}


def is_checkpoint_due(params: TrainParams, step: int, saved_at: float) -> bool:
    """By steps or by minutes, whichever comes first."""
    by_steps, by_minutes = params.checkpoint_every_steps, params.checkpoint_every_minutes
    if by_steps and step % by_steps == 0:
        return True
    return by_minutes is not None and time.monotonic() - saved_at >= 60 * by_minutes
