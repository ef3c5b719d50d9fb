"""Training steps timed in turns, each side in a process of its own.

In one process what a side sets for itself (its threads, its memory allocator) would be set for the other as well.
"""

import multiprocessing
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from time import perf_counter

from torch import Tensor

from benchmarks.timing import alternate
from lmcore.hardware.measure import peak_memory_bytes

Step = Callable[[Tensor], float]
Draw = Callable[[], Tensor]
Build = Callable[[], tuple[Step, Draw]]  # of a side: its step, and the source of its batches


@dataclass(frozen=True)
class Timing:
    """The median of a side's rounds, and the most memory that its process held."""

    seconds: float  # of a step
    peak_memory: int  # bytes


def time_in_turns(sides: Mapping[str, Build], rounds: int, steps: int) -> dict[str, Timing]:
    """Time `steps` steps of each side in each of `rounds`, after two steps, the first of which may compile.

    `sides` are functions that another process can import.
    """
    with ExitStack() as stack:
        ends = {name: stack.enter_context(closing(_start(build))) for name, build in sides.items()}
        for name, end in ends.items():
            seconds, _ = _ask(end, 1)
            print(f"{name}: first step {seconds:.1f} s, compilation included", flush=True)
            _ask(end, 1)
        answers = alternate({name: partial(_ask, end, steps) for name, end in ends.items()}, rounds)
    return {
        name: Timing(statistics.median(seconds for seconds, _ in each), each[-1][1]) for name, each in answers.items()
    }


def _start(build: Build) -> "Connection[int, tuple[float, int]]":
    """Start a side's process, which ends when the returned connection is closed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_serve, args=(build, theirs), daemon=True).start()
    theirs.close()  # the process holds it now: its death is an EOFError here
    return ours


def _ask(end: "Connection[int, tuple[float, int]]", steps: int) -> tuple[float, int]:
    end.send(steps)
    return end.recv()


def _serve(build: Build, end: "Connection[tuple[float, int], int]") -> None:
    """Make as many steps as each message asks for and answer with the seconds of one, until the end is closed."""
    step, draw = build()
    while True:
        try:
            steps = end.recv()
        except EOFError:
            return
        started = perf_counter()
        for _ in range(steps):
            step(draw())
        end.send(((perf_counter() - started) / steps, peak_memory_bytes()))
