"""What `model.document_mask` costs: the training step with it and without, eager and compiled, in turns.

    python -m benchmarks.document_mask                    # 4 layers x 256, 8 x 512 random tokens
    python -m benchmarks.document_mask --context 1024     # beyond what a compiled step on a CPU computes in blocks

The model of params.yaml in that shape, AdamW, in the precision that `auto` takes here.
"""

import argparse
from functools import partial

import torch

from benchmarks.nanogpt import step_ours
from benchmarks.turns import Build, Draw, Step, time_in_turns
from lmcore.hardware.distributed import World
from lmcore.hardware.resolve import Hardware, resolve_precision
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.params import read_section
from lmcore.train.params import TrainParams
from lmcore.train.trainer import build_state

SCALED = {"n_layers": 4, "n_heads": 4, "n_kv_heads": None, "d_model": 256, "d_ff": None}
BATCH, ENTRIES, DOCUMENT = 8, 2048, 200  # sequences, vocabulary, tokens of a document on average
END_OF_TEXT = 0


def main() -> None:
    """Take turns, and print what the mask adds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
    arguments = parser.parse_args()
    sides: dict[str, Build] = {
        f"{way}, {mask} the mask": partial(build_side, arguments.context, way == "compiled", mask == "with")
        for way in ("eager", "compiled")
        for mask in ("without", "with")
    }
    timings = time_in_turns(sides, arguments.rounds, arguments.steps)
    for name, timing in timings.items():
        print(f"{name}: {1e3 * timing.seconds:.0f} ms a step, {timing.peak_memory / 1e6:.0f} MB")
    for way in ("eager", "compiled"):
        without, masked = (timings[f"{way}, {mask} the mask"] for mask in ("without", "with"))
        print(f"{way}: the mask takes {masked.seconds / without.seconds - 1:+.1%} time")


def build_side(context: int, compiled: bool, masked: bool) -> tuple[Step, Draw]:
    """The step of one side on random windows, the same in each process."""
    scaled = {**SCALED, "context_length": context, "document_mask": masked}
    precision, reason = resolve_precision("auto", "cpu")
    threads = torch.get_num_threads()
    hardware = Hardware("cpu", "cpu", precision, BATCH, compile=compiled, compile_reason=reason, threads=threads)
    params = read_section(TrainParams, "train").model_copy(update={"optimizer": "adamw"})
    model_params = read_section(ModelParams, "model").model_copy(update=scaled)
    model = GPT(model_params, ENTRIES, seed=1, end_of_text=END_OF_TEXT)
    generator = torch.Generator().manual_seed(1)

    def draw() -> torch.Tensor:
        windows = torch.randint(1, ENTRIES, (BATCH, context + 1), generator=generator)
        return windows.masked_fill(torch.rand(windows.shape, generator=generator) < 1 / DOCUMENT, END_OF_TEXT)

    return step_ours(build_state(model, params, hardware, World()), hardware, params), draw


if __name__ == "__main__":
    main()
