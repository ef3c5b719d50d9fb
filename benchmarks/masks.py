"""Time that the masks of TiDAR add to a training step, for some fractions of the blocks.

    python -m benchmarks.masks                        # as the recipe tidar: 6 layers x 384, 16 x 128 tokens
    python -m benchmarks.masks --block 8 --fractions 0.125 0.25 0.5 1.0 --eager

Random characters, AdamW, in the precision that `auto` takes here, the sides in turns. The aim is (1 + fraction) x 1.15.
"""

import argparse
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.steps import SHAPES, build_step, plain_hardware
from benchmarks.turns import Build, Draw, Step, time_in_turns
from lmcore.model.gpt import GPT
from lmcore.model.params import DiffusionParams, ModelParams
from lmcore.train.mask_blocks import choose_mask_blocks
from lmcore.train.params import TrainParams

ENTRIES, BATCH, CONTEXT = 65, 16, 128
LAST_STEP = 9  # of ten: one with masks


def main(argv: Sequence[str] | None = None) -> None:
    """Take turns, and print what masks add."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="10m")
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--eager", action="store_true", help="not compiled")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
    arguments = parser.parse_args(argv)
    side = partial(build_side, arguments.shape, arguments.block, not arguments.eager)
    sides: dict[str, Build] = {str(fraction): partial(side, fraction) for fraction in [0.0, *arguments.fractions]}
    timings = time_in_turns(sides, arguments.rounds, arguments.steps)
    plain = timings["0.0"]
    for name, timing in timings.items():
        ratio, aim = timing.seconds / plain.seconds, (1 + float(name)) * 1.15
        memory = timing.peak_memory / 1e6
        print(f"block_fraction {name}: {1e3 * timing.seconds:.0f} ms, {memory:.0f} MB, {ratio:.2f} x (aim {aim:.2f})")


def build_side(shape: str, block: int, compiled: bool, fraction: float) -> tuple[Step, Draw]:
    """Return the step of one side on random windows; a fraction of 0 is a model without masks."""
    diffusion = DiffusionParams(block_size=block, block_fraction=fraction) if fraction else DiffusionParams()
    model_params = ModelParams(**{**SHAPES[shape], "context_length": CONTEXT, "diffusion": diffusion})
    params = TrainParams(batch_size=BATCH, learning_rate=0.001)
    generator = torch.Generator().manual_seed(1)

    def draw() -> Tensor:
        return torch.randint(ENTRIES, (BATCH, CONTEXT + 1), generator=generator)

    choose = partial(choose_mask_blocks, model_params, 1, LAST_STEP + 1, BATCH, LAST_STEP)
    model, hardware = GPT(model_params, ENTRIES, seed=1), plain_hardware(BATCH, compiled=compiled)
    return build_step(model, params, hardware, choose_blocks=choose), draw


if __name__ == "__main__":
    main()
