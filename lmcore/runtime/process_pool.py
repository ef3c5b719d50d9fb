"""Processes that work on text side by side, and give the same results in the same order as one would."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Protocol, Self, TypeVar

from lmcore.errors import LmcoreError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
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
    """An Executor of this machine's processes, which are started when there is work for two; one works right here.

    They are deaf to Ctrl-C, and end as soon as this process leaves by an error, or is gone.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._held: Connection | None = None  # the workers hold the other end, and see when this one closes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None and self._held is not None:
            if kind is not None:  # nobody takes what is in hand, which may last for minutes
                self._held.close()
            self._pool.shutdown(cancel_futures=True)
            self._held.close()
            self._pool = self._held = None

    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Raises what `work` raises, and LmcoreError when a process was killed."""
        if min(self.workers, len(items)) < 2:
            yield from map(work, items)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            end, self._held = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(self.workers, context, initializer=follow_parent, initargs=(end,))
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(submit_deaf(self._pool, work, item))
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


HERE = Processes(1)


def submit_deaf(pool: ProcessPoolExecutor, work: Callable[[Item], Result], item: Item) -> Future[Result]:
    """`pool.submit`; a process that it starts never hears of Ctrl-C, which the terminal sends to all of them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return pool.submit(work, item)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent(held: Connection) -> None:
    """End this worker when the process that started it closes the other end of `held`, or is gone."""

    def end_after() -> None:
        multiprocessing.connection.wait([held])
        os._exit(1)

    threading.Thread(target=end_after, name="follow_parent", daemon=True).start()
