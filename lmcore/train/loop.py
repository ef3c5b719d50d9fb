"""The training loop, as a story; everything beside it arrives as an argument."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from lmcore.errors import LmcoreError
from lmcore.files import derive_seed
from lmcore.hardware import Hardware, peak_memory_bytes
from lmcore.model.gpt import GPT
from lmcore.progress import TrainingProgress
from lmcore.tokens.batches import Batches
from lmcore.train.checkpoint import Checkpoints
from lmcore.train.interrupt import Interrupt
from lmcore.train.optimizer import set_learning_rate
from lmcore.train.run import Record, Run
from lmcore.train.schedule import scale_learning_rate
from lmcore.train.settings import TrainParams


class ValidationLoss(Protocol):
    """What a validation tells the loop."""

    @property
    def loss(self) -> float:
        """Nats per token."""

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text."""


Validate = Callable[[GPT], ValidationLoss]
Forward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TrainingError(LmcoreError):
    """The run cannot go on: the cause, the step, and what is on disk."""


@dataclass(frozen=True)
class Trainee:
    """What a step changes: the model, its (possibly compiled) forward, and the optimizer."""

    model: GPT
    forward: Forward
    optimizer: Optimizer


def train(
    trainee: Trainee,
    batches: Batches,
    params: TrainParams,
    hardware: Hardware,
    *,
    step: int,
    validate: Validate,
    run: Run,
    checkpoints: Checkpoints,
    progress: TrainingProgress,
    interrupt: Interrupt,
) -> None:
    """Train from `step` updates done to `params.max_steps`.

    Raises TrainingError before an update that is not finite; leaves by SystemExit(128 + n) on signal n, state saved.
    """
    saved_at = time.monotonic()
    while step < params.max_steps:
        learning_rate = params.learning_rate * scale_learning_rate(step, params)
        set_learning_rate(trainee.optimizer, learning_rate)
        loss = accumulate_gradients(trainee.forward, batches.at(step), params.seed, step, hardware)
        norm = nn.utils.clip_grad_norm_(trainee.model.parameters(), params.grad_clip or float("inf"))
        require_finite(loss.item(), "the loss", step + 1)
        require_finite(norm.item(), "the gradient's norm", step + 1)
        trainee.optimizer.step()
        trainee.optimizer.zero_grad(set_to_none=True)
        step += 1
        progress.count_step(step)

        # Once in a while: validate, and log.
        is_last = step == params.max_steps
        record: Record = {"step": step, "tokens": step * batches.tokens_per_step}
        if step % params.log_every == 0 or is_last:
            record |= {"train_loss": loss.item(), "learning_rate": learning_rate, "gradient_norm": norm.item()}
        if step % params.eval_every == 0 or is_last:
            with hardware.autocast():
                measured = validate(trainee.model)
            require_finite(measured.loss, "the validation loss", step)
            record |= {"val_loss": measured.loss, "bits_per_byte": measured.bits_per_byte}
        if len(record) > 2:
            run.log(record, tokens_per_second=progress.tokens_per_second, peak_memory_bytes=peak_memory_bytes())
            progress.show(record)

        # Once in a while, at the end and when asked to leave: save.
        if is_last or interrupt.signal or is_checkpoint_due(params, step, saved_at):
            checkpoints.save(step, trainee.model, trainee.optimizer)
            saved_at = time.monotonic()
        if interrupt.signal and not is_last:
            raise SystemExit(128 + interrupt.signal)
        progress.resume()


def accumulate_gradients(
    forward: Forward, windows: NDArray[np.int64], seed: int, step: int, hardware: Hardware
) -> Tensor:
    """Add the gradient of the batch's mean loss to the weights, one micro-batch at a time; return that loss.

    `windows` (batch, time + 1): inputs and, shifted by one, targets. Each micro-batch counts by its share of the
    tokens, so that the sum is the mean over the batch however it is cut.
    """
    # Dropout masks are a function of the step, hence the same after a resume.
    torch.manual_seed(derive_seed(seed, step))
    total = torch.zeros((), device=hardware.device)
    for micro_batch in torch.from_numpy(windows).to(hardware.device).split(hardware.micro_batch_size):
        with hardware.autocast():
            _, loss = forward(micro_batch[:, :-1], micro_batch[:, 1:])
        share = len(micro_batch) / len(windows)
        (loss * share).backward()
        total += loss.detach() * share
    return total


def require_finite(value: float, name: str, step: int) -> None:
    """Stop before a bad update reaches the weights, and before bad weights reach the disk."""
    if not math.isfinite(value):
        raise TrainingError(
            f"step {step}: {name} is {value}, the run stopped before it was saved; lower train.learning_rate or "
            f"train.grad_clip, which starts another run"
        )


def is_checkpoint_due(params: TrainParams, step: int, saved_at: float) -> bool:
    """By steps or by minutes, whichever comes first."""
    by_steps, by_minutes = params.checkpoint_every_steps, params.checkpoint_every_minutes
    if by_steps and step % by_steps == 0:
        return True
    return by_minutes is not None and time.monotonic() - saved_at >= 60 * by_minutes
