"""Two sides timed in turns: machines are shared, so that only their ratio counts."""

import statistics
import time
from collections.abc import Callable, Mapping

from torch import Tensor

Step = Callable[[Tensor], float]


def time_in_turns(sides: Mapping[str, Step], draw: Callable[[], Tensor], rounds: int, steps: int) -> dict[str, float]:
    """Each side's seconds for a step: the median of `rounds`, in each of which every side makes some `steps`.

    Two steps of each come before, the first of which may compile.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for name, step in sides.items():
        started = time.perf_counter()
        step(draw())
        print(f"{name}: first step {time.perf_counter() - started:.1f} s, compilation included", flush=True)
        step(draw())
    for _ in range(rounds):
        for name, step in sides.items():
            started = time.perf_counter()
            for _ in range(steps):
                step(draw())
            seconds[name].append((time.perf_counter() - started) / steps)
    return {name: statistics.median(values) for name, values in seconds.items()}
