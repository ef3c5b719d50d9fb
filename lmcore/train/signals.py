"""Leaving a run in order: signals, and the death of the process that started us."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

from lmcore.hardware.distributed import SAME_SIGNAL_SECONDS, is_worker

LOOK_SECONDS = 0.2  # from one look at the process above to the next, 0.03 ms each
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
    """Under DVC, take its death for a TERM; as one of several processes, that of the one that started them.

    Otherwise a killed `dvc repro` leaves a trainer behind that nobody sees, and the next one waits for it.
    """
    if is_worker():
        parent = psutil.Process().parent()
    elif "DVC_STAGE" in os.environ:
        parent = next(filter(_is_dvc, psutil.Process().parents()), None)
    else:
        return
    if parent is not None:
        threading.Thread(target=_leave_after, args=[parent], name="follow_parent", daemon=True).start()


def _is_dvc(ancestor: psutil.Process) -> bool:
    """What DVC starts has DVC_STAGE in its environment; DVC itself, above it, has not.

    The shell that DVC starts commands in has it too: dash waits for them, where bash becomes the command.
    """
    try:
        return "DVC_STAGE" not in ancestor.environ()
    except psutil.Error:  # gone, or of another user: not what our DVC started
        return True


def _leave_after(parent: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        # A dead one stays, as a zombie, until the process above it looks: `parent.wait()` would wait for that.
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
