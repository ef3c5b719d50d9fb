"""The training step beside nanochat's: its model and optimizer, and ours of the same size, in turns.

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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.nanogpt import device, step_ours
from benchmarks.turns import Build, Draw, Step, time_in_turns
from lmcore.hardware.distributed import World
from lmcore.hardware.params import HardwareParams
from lmcore.hardware.resolve import resolve_hardware
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.params import parse_section, read_params, read_section
from lmcore.train.params import TrainParams
from lmcore.train.trainer import build_state

LAYERS, HEADS, WIDTH, ENTRIES, CONTEXT, BATCH = 6, 6, 384, 4096, 256, 16


def main() -> None:
    """Time both, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanochat", type=Path, required=True, help="a checkout of nanochat")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
    arguments = parser.parse_args()
    sides: dict[str, Build] = {"nanochat": partial(build_theirs, arguments.nanochat), "lmcore": build_ours}
    timings = time_in_turns(sides, arguments.rounds, arguments.steps)
    for name, timing in timings.items():
        print(f"{name}: {1e3 * timing.seconds:.0f} ms a step, {BATCH * CONTEXT / timing.seconds:,.0f} tokens/s")
    print(f"lmcore is {timings['nanochat'].seconds / timings['lmcore'].seconds:.2f} x")


def make_draw() -> Draw:
    """The same batches in each process."""
    generator = torch.Generator().manual_seed(1)
    return lambda: torch.randint(ENTRIES, (BATCH, CONTEXT + 1), generator=generator)


def build_ours() -> tuple[Step, Draw]:
    """One whole update of ours."""
    model_params = parse_section(
        ModelParams,
        "model",
        {
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "n_kv_heads": None,
            "d_model": WIDTH,
            "d_head": None,
            "d_ff": None,
            "context_length": CONTEXT,
            "dropout": 0.0,
            "norm": "rmsnorm",
            "norm_epsilon": None,
            "position": "rope",
            "rope_base": 10_000.0,
            "mlp": "relu2",
            "qk_norm": True,
            "bias": False,
            "tie_embeddings": False,
            "logit_softcap": 15.0,
            "document_mask": False,
        },
    )
    request = read_section(HardwareParams, "hardware").model_copy(update={"micro_batch_size": BATCH})
    hardware = resolve_hardware(request, read_params(), BATCH, CONTEXT, 1e18)
    print(f"lmcore: {hardware.precision}, compiled: {hardware.compile}")
    params = read_section(TrainParams, "train").model_copy(update={"optimizer": "muon", "grad_clip": 1.0})
    state = build_state(GPT(model_params, ENTRIES, seed=1), params, hardware, World())
    return step_ours(state, hardware, params), make_draw()


def build_theirs(checkout: Path) -> tuple[Step, Draw]:
    """One whole update as nanochat's base_train.py does it."""
    sys.path.insert(0, str(checkout))
    theirs = importlib.import_module("nanochat.gpt")
    config = theirs.GPTConfig(
        sequence_len=CONTEXT,
        vocab_size=ENTRIES,
        n_layer=LAYERS,
        n_head=HEADS,
        n_kv_head=HEADS,
        n_embd=WIDTH,
        window_pattern="L",
    )
    with torch.device("meta"):
        model = theirs.GPT(config)
    model.to_empty(device=device())
    model.init_weights()
    optimizer = model.setup_optimizer()
    compiled: Any = torch.compile(model, dynamic=False)
    print(f"nanochat: {theirs.COMPUTE_DTYPE}, compiled: True")

    def step(windows: Tensor) -> float:
        windows = windows.to(device())
        loss = compiled(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return float(loss.item())

    return step, make_draw()


if __name__ == "__main__":
    main()
