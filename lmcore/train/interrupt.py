"""Leaving a run in order: signals, and the death of the process that started us."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lmcore.distributed import SAME_SIGNAL_SECONDS, is_worker

PR_SET_PDEATHSIG = 1  # prctl(2), Linux
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """The signal that asked the run to stop, or None."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._received_at = 0.0

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """First signal: stop after the current step. Another one, which is not of the same event: end at once."""
        if self.signal is None:
            self.signal, self._received_at = number, time.monotonic()
        elif time.monotonic() - self._received_at > SAME_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def catch_signals() -> Iterator[Interrupt]:
    """Note INT, TERM and HUP instead of dying; the handlers are put back afterwards.

    A signal that is ignored stays ignored: `nohup` protects a run from the end of its terminal.
    """
    interrupt = Interrupt()
    noted = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt.receive) for number in noted}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def follow_parent() -> None:
    """Under DVC, and as one of several processes, take the death of the parent for a TERM (Linux).

    Otherwise a killed `dvc repro` leaves a trainer behind that nobody sees, and the next one waits for it.
    """
    if sys.platform == "linux" and ("DVC_STAGE" in os.environ or is_worker()):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
