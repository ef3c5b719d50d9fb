"""Time that `model.document_mask` adds to a training step, eager and compiled.

    python -m benchmarks.document_mask                    # 4 layers x 256, 8 x 512 random tokens
    python -m benchmarks.document_mask --context 1024     # beyond what a compiled step on a CPU computes in blocks

The default blocks in that shape, AdamW, in the precision that `auto` takes here; the sides take turns.
"""

import argparse
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.steps import SHAPES, build_step, plain_hardware
from benchmarks.turns import Build, Draw, Step, time_in_turns
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.train.params import TrainParams

BATCH, ENTRIES, DOCUMENT = 8, 2048, 200  # sequences, vocabulary, tokens of a document on average
END_OF_TEXT = 0


def main(argv: Sequence[str] | None = None) -> None:
    """Take turns, and print what the mask adds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="3m")
    parser.add_argument("--ways", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
    arguments = parser.parse_args(argv)
    side = partial(build_side, arguments.shape, arguments.context)
    sides: dict[str, Build] = {
        f"{way}, {mask} the mask": partial(side, way == "compiled", mask == "with")
        for way in arguments.ways
        for mask in ("without", "with")
    }
    timings = time_in_turns(sides, arguments.rounds, arguments.steps)
    for name, timing in timings.items():
        print(f"{name}: {1e3 * timing.seconds:.0f} ms a step, {timing.peak_memory / 1e6:.0f} MB")
    for way in arguments.ways:
        without, masked = (timings[f"{way}, {mask} the mask"] for mask in ("without", "with"))
        print(f"{way}: the mask takes {masked.seconds / without.seconds - 1:+.1%} time")


def build_side(shape: str, context: int, compiled: bool, masked: bool) -> tuple[Step, Draw]:
    """Return the step of one side on random windows, the same in each process."""
    model_params = ModelParams(**{**SHAPES[shape], "context_length": context, "document_mask": masked})
    model = GPT(model_params, ENTRIES, seed=1, end_of_text=END_OF_TEXT)
    generator = torch.Generator().manual_seed(1)

    def draw() -> torch.Tensor:
        windows = torch.randint(1, ENTRIES, (BATCH, context + 1), generator=generator)
        return windows.masked_fill(torch.rand(windows.shape, generator=generator) < 1 / DOCUMENT, END_OF_TEXT)

    return build_step(model, TrainParams(), plain_hardware(BATCH, compiled=compiled)), draw


if __name__ == "__main__":
    main()
