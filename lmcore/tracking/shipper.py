"""A thread that brings what training has written to one tracker; training never waits for it."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmcore.runtime.progress import warn
from lmcore.tracking.spool import SPOOLS, Row, read_rows
from lmcore.tracking.store import explain

SHIP_SECONDS = 10.0  # pause between two batches of metrics: each takes a core from the training for a moment
FLUSH_SECONDS = 60.0  # how long the end of a training waits for a slow server
LONGEST_BACKOFF_SECONDS = 60.0


class Backend(ABC):
    """One tracker. All methods are called by the shipper's thread alone and may raise whatever they like.

    After an exception `open` is called again.
    """

    label: str  # its name in messages, with its place

    @abstractmethod
    def open(self) -> Mapping[str, int]:
        """Find or begin the run there and describe it; returns how many bytes of each spool it needs no more."""

    @abstractmethod
    def send(self, rows: Sequence[Row]) -> None:
        """Store the rows, which come in the order of their file. Called in every round, also with none."""

    def note(self, positions: Mapping[str, int]) -> None:  # noqa: B027
        """What was sent before is stored: these are the bytes that are needed no more."""

    def save_model(self) -> None:  # noqa: B027
        """Store the finished model, if the tracker keeps models."""

    @abstractmethod
    def close(self, status: str) -> None:
        """The run is over, FINISHED, FAILED or KILLED."""


class Shipper(threading.Thread):
    """Tails the spools of `folder`, runs/KEY, into one backend."""

    def __init__(self, folder: Path, backend: Backend) -> None:
        super().__init__(name=type(backend).__name__, daemon=True)
        self.folder, self.backend = folder, backend
        self.status = ""
        self.ending = threading.Event()
        self.shipped = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        """Connect, ship until the training ends, close the run; start again after a failure, ever more slowly."""
        backoff = SHIP_SECONDS
        while True:
            try:
                self._ship_until_ended()
                self.failure = None
                return
            except Exception as error:  # a tracker must never end a training; `wait` reports it
                if self.failure is None:
                    warn(f"{self.backend.label} does not take metrics yet ({explain(error)}): trying again")
                self.failure = error
                if self.ending.is_set():
                    return
                self.ending.wait(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)

    def end(self, status: str) -> None:
        """The training is over: what is there by now is the last to be shipped."""
        self.status = status
        self.ending.set()

    def wait(self, deadline: float) -> bool:
        """Wait for the last points, until the monotonic clock says `deadline`; whether all is stored, else says so."""
        while self.is_alive() and not self.shipped.wait(0.05) and time.monotonic() < deadline:
            pass
        if self.shipped.is_set():
            self.join()  # the upload of a large model may take longer than the last points
        if self.is_alive() or self.failure:
            reason = explain(self.failure) if self.failure else f"still busy after {FLUSH_SECONDS:.0f} s"
            warn(
                f"{self.backend.label} lacks a part of this run ({reason}): all of it is in {self.folder}, and "
                f"`lmcore ship {self.folder.name}` sends it later"
            )
            return False
        return True

    def _ship_until_ended(self) -> None:
        positions = dict(self.backend.open())
        while True:
            ending = self.ending.is_set()
            self.backend.send([])
            for name in SPOOLS:
                while (found := read_rows(self.folder / name, positions.get(name, 0)))[0]:
                    rows, positions[name] = found
                    self.backend.send(rows)
                    self.backend.note(positions)
            if ending:
                break
            self.ending.wait(SHIP_SECONDS)
        self.shipped.set()
        try:
            if self.status == "FINISHED":
                self.backend.save_model()
        finally:
            self.backend.close(self.status)
