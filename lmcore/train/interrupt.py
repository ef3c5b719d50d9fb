"""Leaving a run in order: signals, and the death of the process that started us."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PR_SET_PDEATHSIG = 1  # prctl(2), Linux
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """The signal that asked the run to stop, or None."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """First signal: stop after the current step. Second: the usual abrupt end."""
        self.signal = number
        for known in SIGNALS:
            if signal.getsignal(known) is not signal.SIG_IGN:
                signal.signal(known, signal.SIG_DFL)


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
    """Under DVC (Linux), take the death of dvc itself for a TERM.

    Otherwise a killed `dvc repro` leaves a trainer behind that nobody sees, and the next one trains beside it.
    """
    if "DVC_STAGE" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
