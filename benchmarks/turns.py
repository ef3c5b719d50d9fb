"""Sides timed in turns, each in a process of its own: machines are shared, so that only their ratio counts.

In one process what a side sets for itself (its threads, its way with freed memory) would be set for the other as well.
"""

import multiprocessing
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import perf_counter

from torch import Tensor

from lmcore.hardware.measure import peak_memory_bytes

Step = Callable[[Tensor], float]
Draw = Callable[[], Tensor]
Build = Callable[[], tuple[Step, Draw]]  # of a side: its step, and where that takes a batch from


@dataclass(frozen=True)
class Timing:
    """The median of a side's rounds, and the most memory that its process held."""

    seconds: float  # of a step
    peak_memory: int  # bytes


def time_in_turns(sides: Mapping[str, Build], rounds: int, steps: int) -> dict[str, Timing]:
    """Each side makes some `steps` in each of so many `rounds`; two steps, the first of which may compile, come before.

    `sides` are functions that another process can import.
    """
    with ExitStack() as stack:
        ends = {name: stack.enter_context(closing(_start(build))) for name, build in sides.items()}
        for name, end in ends.items():
            seconds, _ = _ask(end, 1)
            print(f"{name}: first step {seconds:.1f} s, compilation included", flush=True)
            _ask(end, 1)
        answers = [{name: _ask(end, steps) for name, end in ends.items()} for _ in range(rounds)]
    return {
        name: Timing(statistics.median(answer[name][0] for answer in answers), answers[-1][name][1]) for name in sides
    }


def _start(build: Build) -> "Connection[int, tuple[float, int]]":
    """A side's process, which ends when this connection is closed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_serve, args=(build, theirs), daemon=True).start()
    theirs.close()  # the process holds it now: its death is an EOFError here
    return ours


def _ask(end: "Connection[int, tuple[float, int]]", steps: int) -> tuple[float, int]:
    end.send(steps)
    return end.recv()


def _serve(build: Build, end: "Connection[tuple[float, int], int]") -> None:
    """Make as many steps as is asked for, and tell the seconds of one, until nobody asks."""
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
