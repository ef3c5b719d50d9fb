"""Processes that work on text side by side: how many, and the same results in the same order as one would give."""

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from lmcore.errors import LmcoreError
from lmcore.params import AutoOrCount, Section, parse_section, read_params

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerParams(Section):
    """`hardware.workers`: processes that work on text at once; `auto` is one for each core."""

    workers: AutoOrCount


def read_workers(path: Path = Path("params.yaml")) -> int:
    """The number of processes that params.yaml asks for. Raises ParameterError."""
    request = {"workers": (read_params(path).get("hardware") or {}).get("workers")}
    workers = parse_section(WorkerParams, "hardware", request).workers
    return count_cores() if workers == "auto" else workers


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """`work` of each item, in order, some of them at once; with one worker in this process.

    `work` and the items are pickled. Raises what `work` raises, and LmcoreError when a process was killed.
    """
    workers = min(workers, len(items))
    if workers < 2:
        yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=follow_parent)
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * workers:  # one in hand and one at hand for each
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise LmcoreError(
            f"one of {workers} processes that work on the text was killed, perhaps for want of memory: lower "
            f"hardware.workers, or run the same command again, which goes on from here"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def follow_parent() -> None:
    """End this worker when the process that started it is gone: nobody would take what it makes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=[parent.sentinel], name="follow_parent", daemon=True).start()


def _end_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
