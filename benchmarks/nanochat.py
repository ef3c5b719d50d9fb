"""Training step beside nanochat's model and optimizer, at the same size.

    git clone https://github.com/karpathy/nanochat ../nanochat
    python -m benchmarks.nanochat --nanochat ../nanochat

6 layers, 384 wide, 4,096 entries, 16 x 256 tokens. nanochat as its run for a CPU has it: attention over the whole
context, compiled, in the precision that it chooses (fp32 on a CPU, bfloat16 on a newer card). Ours: the blocks that
have the same products (rotary positions, RMSNorm, QK-norm, squared ReLU, capped scores, untied, Muon), and the hardware
that `auto` gives for a long run. nanochat's model has value embeddings and some gates beside; they are not products.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.steps import SHAPES, auto_hardware, build_step, device
from benchmarks.turns import Build, Draw, Step, time_in_turns
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.train.params import TrainParams

ENTRIES, BATCH = 4096, 16


def main(argv: Sequence[str] | None = None) -> None:
    """Time both, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanochat", type=Path, required=True, help="a checkout of nanochat")
    parser.add_argument("--shape", choices=SHAPES, default="10m")
    parser.add_argument("--eager", action="store_true", help="neither side compiled")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
    arguments = parser.parse_args(argv)
    shape, eager = arguments.shape, arguments.eager
    sides: dict[str, Build] = {
        "nanochat": partial(build_theirs, arguments.nanochat, shape, eager),
        "lmcore": partial(build_ours, shape, eager),
    }
    timings = time_in_turns(sides, arguments.rounds, arguments.steps)
    tokens = BATCH * SHAPES[shape]["context_length"]
    for name, timing in timings.items():
        print(f"{name}: {1e3 * timing.seconds:.0f} ms a step, {tokens / timing.seconds:,.0f} tokens/s")
    print(f"lmcore is {timings['nanochat'].seconds / timings['lmcore'].seconds:.2f} x")


def make_draw(context: int) -> Draw:
    """Return a source of the same batches in each process."""
    generator = torch.Generator().manual_seed(1)
    return lambda: torch.randint(ENTRIES, (BATCH, context + 1), generator=generator)


def build_ours(shape: str, eager: bool) -> tuple[Step, Draw]:
    """Return one whole update of ours."""
    model_params = ModelParams(**SHAPES[shape], mlp="relu2", tie_embeddings=False, logit_softcap=15.0)
    hardware = auto_hardware(BATCH, model_params.context_length, eager=eager)
    print(f"lmcore: {hardware.precision}, compiled: {hardware.compile}")
    params = TrainParams(optimizer="muon")
    step = build_step(GPT(model_params, ENTRIES, seed=1), params, hardware)
    return step, make_draw(model_params.context_length)


def build_theirs(checkout: Path, shape: str, eager: bool) -> tuple[Step, Draw]:
    """Return one whole update as nanochat's base_train.py does it."""
    sizes = SHAPES[shape]
    sys.path.insert(0, str(checkout))
    theirs = importlib.import_module("nanochat.gpt")
    config = theirs.GPTConfig(
        sequence_len=sizes["context_length"],
        vocab_size=ENTRIES,
        n_layer=sizes["n_layers"],
        n_head=sizes["n_heads"],
        n_kv_head=sizes["n_heads"],
        n_embd=sizes["d_model"],
        window_pattern="L",
    )
    with torch.device("meta"):
        model = theirs.GPT(config)
    model.to_empty(device=device())
    model.init_weights()
    optimizer = model.setup_optimizer()
    compiled: Any = model if eager else torch.compile(model, dynamic=False)
    print(f"nanochat: {theirs.COMPUTE_DTYPE}, compiled: {not eager}")

    def step(windows: Tensor) -> float:
        windows = windows.to(device())
        loss = compiled(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return float(loss.item())

    return step, make_draw(sizes["context_length"])


if __name__ == "__main__":
    main()
