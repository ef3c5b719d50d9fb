"""What sharing a training out costs: two processes of one thread beside one process of two, on the same cores.

    python -m benchmarks.processes

The model of params.yaml scaled to 10M parameters, 16 x 256 random tokens, AdamW, not compiled, in the precision that
`auto` takes here. Each side starts anew in each of several rounds, in turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch

from lmcore.hardware.distributed import join_world, launch, split_batch
from lmcore.hardware.resolve import Hardware, resolve_precision
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.params import read_section
from lmcore.train.params import TrainParams
from lmcore.train.step import Batch, accumulate_gradients, update_weights
from lmcore.train.trainer import build_state

SCALED = {"n_layers": 6, "n_heads": 6, "n_kv_heads": None, "d_model": 384, "context_length": 256, "d_ff": None}
SIDES = {"one process": (1, "replicate"), "two, replicate": (2, "replicate"), "two, full": (2, "full")}
BATCH, ENTRIES, WARM_UP, STEPS = 16, 512, 3, 12


def main() -> None:
    """Alternate the sides, and print the ratios of their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(rounds):
        for name, side in SIDES.items():
            environment = {**os.environ, "SIDE": json.dumps(side)}
            command = [sys.executable, "-m", "benchmarks.processes"]
            finished = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            seconds[name].append(float(finished.stdout))
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {1e3 * median:.0f} ms a step, {medians['one process'] / median:.2f} x the speed of one process")


def run_side(processes: int, sharding: str) -> None:
    """Train a few steps in so many processes; the main one prints the seconds of a step."""
    launch(processes, "benchmarks.processes")
    precision, _ = resolve_precision("auto", "cpu")
    with join_world("cpu") as world:
        hardware = Hardware(
            profile="cpu",
            device="cpu",
            precision=precision,
            micro_batch_size=BATCH // processes,
            compile=False,
            compile_reason="both sides alike",
            threads=torch.get_num_threads(),
            processes=processes,
            sharding="full" if sharding == "full" else "replicate",
        )
        params = read_section(TrainParams, "train").model_copy(update={"optimizer": "adamw"})
        model = GPT(read_section(ModelParams, "model").model_copy(update=SCALED), ENTRIES, seed=1, end_of_text=0)
        state = build_state(model, params, hardware, world)
        generator = torch.Generator().manual_seed(1)
        windows = torch.randint(ENTRIES, (BATCH, 257), generator=generator)[split_batch(BATCH, world)]
        for step in range(WARM_UP + STEPS):
            if step == WARM_UP:
                world.barrier()
                started = time.perf_counter()
            loss = accumulate_gradients(state, Batch(windows), step, params, hardware, world)
            update_weights(state, loss.total, params.learning_rate, params)
        world.barrier()
        if world.is_main:
            print((time.perf_counter() - started) / STEPS)


if __name__ == "__main__":
    if "SIDE" in os.environ:
        run_side(*json.loads(os.environ["SIDE"]))
    else:
        main()
