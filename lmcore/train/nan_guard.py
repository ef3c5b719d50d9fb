"""Whether the numbers of a run are still numbers, and whether the loss jumps."""

import math
import statistics
from collections.abc import Sequence

from torch import Tensor

from lmcore.errors import LmcoreError
from lmcore.runtime.progress import warn
from lmcore.train.params import TrainParams
from lmcore.train.run_state import Record
from lmcore.train.state import TrainState

SPIKE_RECORDS = 30  # logged losses that say what is usual
SPIKE_DEVIATIONS = 6.0


class TrainingError(LmcoreError):
    """The run cannot go on: the cause, the step, and what is on disk."""


def require_few_skipped(state: TrainState, params: TrainParams, step: int, loss: Tensor, norm: Tensor) -> None:
    """Stop when more updates than `max_skipped_steps` were not finite. None of them has touched the weights."""
    skipped = int(state.counters["skipped_steps"].item())
    if skipped > params.max_skipped_steps:
        raise TrainingError(
            f"step {step}: {skipped} updates were not finite and not made, more than "
            f"train.max_skipped_steps={params.max_skipped_steps} (now the loss is {loss.item():.4g}, the gradient's "
            f"norm {norm.item():.4g}); the last checkpoint is sound: lower train.learning_rate or train.grad_clip, "
            f"which starts another run"
        )
    if skipped > state.reported_skips:
        warn(f"step {step}: {skipped} of at most {params.max_skipped_steps} updates were not finite and not made")
        state.reported_skips = skipped


def require_finite(value: float, name: str, step: int) -> None:
    """Stop before weights that compute nonsense reach the disk."""
    if not math.isfinite(value):
        raise TrainingError(
            f"step {step}: {name} is {value}, the run stopped before it was saved; lower train.learning_rate or "
            f"train.grad_clip, which starts another run"
        )


def report_spike(records: Sequence[Record], record: Record) -> None:
    """Warn of a training loss far above the last ones, by their median and median deviation."""
    if "train_loss" not in record:
        return
    usual = [past["train_loss"] for past in records[-2 * SPIKE_RECORDS :] if "train_loss" in past][-SPIKE_RECORDS:]
    if len(usual) < SPIKE_RECORDS:
        return
    median = statistics.median(usual)
    deviation = statistics.median(abs(loss - median) for loss in usual)
    # 1.4826 makes it a normal distribution's standard deviation.
    if record["train_loss"] > median + SPIKE_DEVIATIONS * 1.4826 * deviation:
        warn(
            f"step {record['step']}: the loss rose to {record['train_loss']:.4f}; "
            f"the {SPIKE_RECORDS} before were around {median:.4f}"
        )
