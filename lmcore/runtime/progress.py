"""What a person sees while it runs: a live line on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lmcore.errors import FULL_DISK

PLAIN_LINE_SECONDS = 10.0
# Of a training step's line, by the metric.
LABELS = {
    "train_loss": "loss {:.4f}",
    "val_loss": "validation {:.4f}",
    "learning_rate": "learning rate {:.2e}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "{:.0%} MFU",
}


def say(line: str) -> None:
    """One line of information on standard output, at once."""
    _print(line, sys.stdout)


def warn(line: str) -> None:
    """One line about something that went on differently than asked, on standard error."""
    _print(f"warning: {line}", sys.stderr)


def _print(line: str, stream: TextIO) -> None:
    try:
        print(line, file=stream, flush=True)
    except OSError as error:  # the stream is a file on a full disk: a training that survives it needs no witness
        if error.errno not in FULL_DISK:
            raise


Done = TypeVar("Done")


class BytesProgress(Progress):
    """A bar of bytes on a terminal; elsewhere a line in ten seconds: `encode: 120 of 480 MB, 35 MB/s`."""

    def __init__(self, name: str, total: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        super().__init__(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self.name, self.total, self.done = name, total, 0
        self.started = self.last_line = time.monotonic()
        self.task = self.add_task(name, total=total)

    def follow(self, items: Iterable[Done], sizes: Sequence[int]) -> Iterator[Done]:
        """The items as they come; each brings its bytes."""
        for item, size in zip(items, sizes, strict=True):
            self.done += size
            self.update(self.task, completed=self.done)
            now = time.monotonic()
            if self.disable and now - self.last_line >= PLAIN_LINE_SECONDS:
                self.last_line = now
                rate = self.done / (now - self.started)
                say(f"{self.name}: {self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB, {rate / 1e6:,.0f} MB/s")
            yield item


class TrainingProgress(Progress):
    """Step, losses, learning rate, tokens per second and the time left of one training run.

    `peak_tokens_per_second`: the speed if the machine did nothing but the model's matrix products.
    Speed counts training alone: what lies between the end of a step (`count_step`) and `resume` is something else, and
    so is the first step, which may compile.
    """

    def __init__(
        self,
        first_step: int,
        max_steps: int,
        tokens_per_step: int,
        *,
        peak_tokens_per_second: float | None = None,
        shown: bool = True,
    ) -> None:
        console = Console(stderr=True)
        super().__init__(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self.max_steps, self.tokens_per_step = max_steps, tokens_per_step
        self.peak_tokens_per_second = peak_tokens_per_second
        self.resumed: float | None = None
        self.timed_seconds, self.timed_steps = 0.0, 0
        self.last_line = 0.0
        self.shown: dict[str, float] = {}
        self.task = self.add_task("train", total=max_steps, completed=first_step, text="")

    def count_step(self, step: int) -> None:
        """Update `step` is done; the clock of training stands still until `resume`."""
        if self.resumed is not None:
            self.timed_seconds += time.monotonic() - self.resumed
            self.timed_steps += 1
        self.update(self.task, completed=step)

    def resume(self) -> None:
        """Training goes on."""
        self.resumed = time.monotonic()

    @property
    def tokens_per_second(self) -> float:
        """Training speed so far; 0 before the second step."""
        return self.timed_steps * self.tokens_per_step / self.timed_seconds if self.timed_seconds else 0.0

    @property
    def speed(self) -> dict[str, float]:
        """Tokens per second and, where the machine's peak is known, the share of it (model FLOP/s utilisation)."""
        speed = {"tokens_per_second": self.tokens_per_second}
        if self.peak_tokens_per_second:
            speed["mfu"] = self.tokens_per_second / self.peak_tokens_per_second
        return speed

    def show(self, record: Mapping[str, Any]) -> None:
        """A logged step's metrics: into the live line, or as a plain line (one in ten seconds, and the last)."""
        self.shown.update({key: value for key, value in record.items() if value is not None})
        known = {**self.shown, **self.speed}
        text = "  ".join(label.format(known[key]) for key, label in LABELS.items() if key in known)
        self.update(self.task, text=text)
        now, step = time.monotonic(), int(record["step"])
        if self.disable and (now - self.last_line >= PLAIN_LINE_SECONDS or step == self.max_steps):
            self.last_line = now
            left = ""
            if self.timed_steps and step < self.max_steps:
                seconds = int((self.max_steps - step) * self.tokens_per_step / self.tokens_per_second)
                left = f"  {seconds // 60}:{seconds % 60:02d} left"
            say(f"step {step}/{self.max_steps}  {text}{left}")


DURATIONS = [
    (2 * 365 * 86_400, 365 * 86_400, "years"),
    (2 * 86_400, 86_400, "days"),
    (5_400, 3_600, "h"),
    (90, 60, "min"),
]


def show_count(number: float | None) -> str:
    """Of parameters or tokens, in millions and beyond: 124 M, 20 B, 0.22 M; `?` for None."""
    if number is None:
        return "?"
    rounded = float(f"{number:.3g}")
    unit, name = next((pair for pair in ((1e12, "T"), (1e9, "B")) if rounded >= pair[0]), (1e6, "M"))
    return f"{rounded / unit:.3g} {name}"


def show_bytes(number: float) -> str:
    """Memory, a file or a disk, two digits of it: 97 B, 5.2 kB, 81 MB, 3.4 GB, 128 GB."""
    units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    unit, name = next((pair for pair in units if number >= 0.995 * pair[0]), (1, "B"))
    return f"{number / unit:.2g} {name}" if number < 9.95 * unit else f"{number / unit:.0f} {name}"


def show_duration(seconds: float | None) -> str:
    """An estimate's first two digits: 40 s, 12 min, 3.5 h, 21 days, 4 years; `?` for None."""
    if seconds is None:
        return "?"
    unit, name = next(((unit, name) for least, unit, name in DURATIONS if seconds >= least), (1, "s"))
    return f"{float(f'{seconds / unit:.2g}'):,g} {name}"
