"""Processes that work on text side by side, and give the same results in the same order as one would."""

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, Self, TypeVar

from lmcore.errors import LmcoreError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Where work on text is done: in processes of this machine, or of several."""

    @property
    def workers(self) -> int:
        """How many items are worked on at once."""

    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """`work` of each item, in order, some of them at once; `work` and the items are pickled."""


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes:
    """An Engine of this machine's processes, which are started when there is work for two; one works right here."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Raises what `work` raises, and LmcoreError when a process was killed."""
        if min(self.workers, len(items)) < 2:
            yield from map(work, items)
            return
        waiting: deque[Future[Result]] = deque()
        pool = self._start()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * self.workers:  # one in hand and one at hand for each
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise LmcoreError(
                f"one of {self.workers} processes that work on the text was killed, perhaps for want of memory: lower "
                f"hardware.workers, or run the same command again, which goes on from here"
            ) from None
        finally:
            for future in waiting:
                future.cancel()

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=follow_parent)
        return self._pool


HERE = Processes(1)


def follow_parent() -> None:
    """End this worker when the process that started it is gone: nobody would take what it makes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=[parent.sentinel], name="follow_parent", daemon=True).start()


def _end_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
