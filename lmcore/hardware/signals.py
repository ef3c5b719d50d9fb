"""Signals that ask a process to stop, noted instead of obeyed at once."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Signals within this time are one event: Slurm signals a launcher and its workers alike, and the launcher passes it on.
SAME_SIGNAL_SECONDS = 1.0


class Interrupt:
    """The signals that asked the process to stop, one for each event."""

    def __init__(self, *, ends_at_second: bool = True) -> None:
        self.events: list[int] = []
        self._ends_at_second, self._first_at = ends_at_second, 0.0

    @property
    def signal(self) -> int | None:
        """The first one, or None."""
        return self.events[0] if self.events else None

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Note the signal of a new event; with `ends_at_second` the second event ends the process at once."""
        now = time.monotonic()
        if not self.events:
            self._first_at = now
        elif now - self._first_at <= SAME_SIGNAL_SECONDS:
            return
        elif self._ends_at_second:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.events.append(number)


@contextmanager
def catch_signals(*, ends_at_second: bool = True) -> Iterator[Interrupt]:
    """Note INT, TERM and HUP instead of dying; the handlers are put back afterwards.

    A signal that is ignored stays ignored: `nohup` protects a run from the end of its terminal.
    """
    interrupt = Interrupt(ends_at_second=ends_at_second)
    noted = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt.receive) for number in noted}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
