"""Training step of two processes with one thread each beside one process with two, on the same cores.

    python -m benchmarks.processes

The default blocks at 10M parameters, 16 x 256 random tokens, AdamW, not compiled, in the precision that `auto` takes
here. Each side starts anew in each of several rounds, in turn.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.steps import SHAPES, plain_hardware
from benchmarks.timing import alternate, run_apart
from lmcore.hardware.distributed import World, join_world, launch, split_batch
from lmcore.hardware.params import Sharding
from lmcore.hardware.resolve import Hardware
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.train.params import TrainParams
from lmcore.train.step import Batch, accumulate_gradients, update_weights
from lmcore.train.trainer import build_state

SIDES: dict[str, tuple[int, Sharding]] = {
    "one process": (1, "replicate"),
    "two, replicate": (2, "replicate"),
    "two, full": (2, "full"),
}
BATCH, ENTRIES, WARM_UP, STEPS = 16, 512, 3, 12


def main(argv: Sequence[str] | None = None) -> None:
    """Alternate the sides, and print the ratios of their medians."""
    if "SIDE" in os.environ:
        run_side(*json.loads(os.environ["SIDE"]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, default="10m")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    options = parser.parse_args(argv)
    sides = {
        name: partial(run_apart, "benchmarks.processes", SIDE=json.dumps([options.shape, *SIDES[name]]))
        for name in options.sides
    }
    medians = {name: statistics.median(seconds) for name, seconds in alternate(sides, options.rounds).items()}
    first = options.sides[0]
    for name, median in medians.items():
        print(f"{name}: {1e3 * median:.0f} ms a step, {medians[first] / median:.2f} x the speed of {first}")


def run_side(shape: str, processes: int, sharding: Sharding) -> None:
    """Train a few steps in so many processes; the main one prints the seconds of a step."""
    launch(processes, "benchmarks.processes")
    plain = plain_hardware(BATCH // processes, compiled=False)
    hardware = replace(plain, processes=processes, sharding=sharding)
    params, model_params = TrainParams(), ModelParams(**SHAPES[shape])
    with join_world("cpu") as world:
        seconds = time_step(params, model_params, hardware, world)
        if world.is_main:
            print(seconds)


def time_step(params: TrainParams, model_params: ModelParams, hardware: Hardware, world: World) -> float:
    """Return the seconds of a step.

    A function of its own, so that nothing refers to the process group any more when it is destroyed.
    """
    model = GPT(model_params, ENTRIES, seed=1, end_of_text=0)
    state = build_state(model, params, hardware, world)
    generator = torch.Generator().manual_seed(1)
    size = (BATCH, model_params.context_length + 1)
    windows = torch.randint(ENTRIES, size, generator=generator)[split_batch(BATCH, world)]
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            world.barrier()
            started = time.perf_counter()
        loss = accumulate_gradients(state, Batch(windows), step, params, hardware, world)
        update_weights(state, loss.total, params.learning_rate, params)
    world.barrier()
    return (time.perf_counter() - started) / STEPS


if __name__ == "__main__":
    main()
