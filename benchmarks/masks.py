"""What the masks of TiDAR add to a training step: without them and with some of the blocks, in turns.

    python -m benchmarks.masks                        # the recipe tidar: 6 layers x 384, 16 x 128 tokens
    python -m benchmarks.masks --recipe tidar --block 8 --fractions 0.125 0.25 0.5 1.0 --eager

Random characters, AdamW, in the precision that `auto` takes here. The aim is (1 + fraction) x 1.15.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.turns import Build, Draw, Step, time_in_turns
from lmcore.commands.recipes import Recipe, find_recipe
from lmcore.hardware.distributed import World
from lmcore.hardware.resolve import Hardware, resolve_precision
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.params import parse_section
from lmcore.train.params import TrainParams
from lmcore.train.step import Batch, accumulate_gradients, update_weights
from lmcore.train.tidar_blocks import choose_mask_blocks
from lmcore.train.trainer import build_state

ENTRIES = 65
LAST_STEP = 9  # of ten: one with masks


def main() -> None:
    """Take turns, and print what masks add."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="tidar")
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--eager", action="store_true", help="not compiled")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
    arguments = parser.parse_args()
    recipe = find_recipe(arguments.recipe, Path("recipes"))
    side = partial(build_side, recipe, arguments.block, not arguments.eager)
    sides: dict[str, Build] = {str(fraction): partial(side, fraction) for fraction in [0.0, *arguments.fractions]}
    timings = time_in_turns(sides, arguments.rounds, arguments.steps)
    plain = timings["0.0"]
    for name, timing in timings.items():
        ratio, aim = timing.seconds / plain.seconds, (1 + float(name)) * 1.15
        memory = timing.peak_memory / 1e6
        print(f"block_fraction {name}: {1e3 * timing.seconds:.0f} ms, {memory:.0f} MB, {ratio:.2f} x (aim {aim:.2f})")


def build_side(recipe: Recipe, block: int, compiled: bool, fraction: float) -> tuple[Step, Draw]:
    """The step of one side on random windows; a fraction of 0 is a model without masks."""
    chosen = {"block_size": block, "block_fraction": fraction} if fraction else {"block_size": None}
    values = dict(recipe.values["model"])
    values["diffusion"] = {**values["diffusion"], **chosen}
    model_params = parse_section(ModelParams, "model", values)
    params = parse_section(TrainParams, "train", recipe.values["train"])
    precision, reason = resolve_precision("auto", "cpu")
    size, threads = params.batch_size, torch.get_num_threads()
    hardware = Hardware("cpu", "cpu", precision, size, compile=compiled, compile_reason=reason, threads=threads)
    state = build_state(GPT(model_params, ENTRIES, seed=1), params, hardware, World())
    generator = torch.Generator().manual_seed(1)

    def draw() -> Tensor:
        return torch.randint(ENTRIES, (size, model_params.context_length + 1), generator=generator)

    def step(windows: Tensor) -> float:
        batch = Batch(windows, choose_mask_blocks(model_params, 1, LAST_STEP + 1, size, LAST_STEP))
        losses = accumulate_gradients(state, batch, 0, params, hardware, World())
        update_weights(state, losses.total, params.learning_rate, params)
        return losses.total.item()

    return step, draw


if __name__ == "__main__":
    main()
