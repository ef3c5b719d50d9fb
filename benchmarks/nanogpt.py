"""The training step beside nanoGPT's: same model, weights, batches and optimizer, in one process, in turns.

    git clone https://github.com/karpathy/nanoGPT ../nanoGPT
    python -m benchmarks.nanogpt --nanogpt ../nanoGPT --text tinyshakespeare.txt            # 10.6M, 16 x 256 characters
    python -m benchmarks.nanogpt --nanogpt ../nanoGPT --text tinyshakespeare.txt --shape 124m --batch 4

First both train in fp32, eager, for 20 steps, and the losses are compared step by step; then each side does what it
would do by default on this machine: nanoGPT in fp32, eager, as its documentation has it for a CPU (on a CUDA card in
bfloat16, compiled), and this project what `hardware.profile: auto` gives for a long run. Run it on a quiet machine.
With `--alone nanoGPT` or `--alone lmcore` one side makes a round of steps, for the memory it needs.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.turns import Step, time_in_turns
from lmcore.distributed import World
from lmcore.hardware import Hardware, HardwareParams, peak_memory_bytes, resolve_hardware
from lmcore.machine import measure_peak_flops
from lmcore.model.gpt import GPT, ModelParams
from lmcore.params import parse_section, read_params, read_section
from lmcore.train.schedule import estimate_flops
from lmcore.train.session import build_state
from lmcore.train.settings import TrainParams
from lmcore.train.state import TrainState
from lmcore.train.step import accumulate_gradients, update_weights

LEARNING_RATE = 1e-4  # small: at 1e-3 without a warm-up the loss jumps, and rounding grows to 0.1 in 20 steps
SHAPES = {"10m": (6, 6, 384, 256), "124m": (12, 12, 768, 256)}  # layers, heads, width, context
# Our names of weights and nanoGPT's.
NAMES = {
    "token_embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "blocks": "transformer.h",
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.projection": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.projection": "mlp.c_proj",
}


def main() -> None:
    """Compare the losses, then the speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, required=True, help="a text file, taken by characters")
    parser.add_argument("--shape", choices=SHAPES, default="10m")
    parser.add_argument("--batch", type=int, default=16, help="sequences")
    parser.add_argument("--vocabulary", type=int, help="entries; by default as many as the text has characters")
    parser.add_argument("--alone", choices=["nanoGPT", "lmcore"], help="the peak memory of one side, and no times")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
    arguments = parser.parse_args()
    theirs = load_module(arguments.nanogpt / "model.py")
    tokens, vocab_size = read_tokens(arguments.text)
    vocab_size = arguments.vocabulary or vocab_size
    model_params = shape_params(arguments.shape)
    context = model_params.context_length
    generator = np.random.default_rng(1)

    def draw() -> Tensor:
        starts = generator.integers(0, len(tokens) - context - 1, arguments.batch)
        return torch.from_numpy(np.stack([tokens[start : start + context + 1] for start in starts]))

    if arguments.alone:
        hardware = choose_hardware(arguments.batch, context)
        step = build_side(arguments.alone, theirs, model_params, vocab_size, hardware)
        report_speed(
            time_in_turns({arguments.alone: step}, draw, 1, arguments.steps), model_params, vocab_size, hardware
        )
        print(f"peak memory {peak_memory_bytes() / 1e9:.2f} GB")
        return
    compare_losses(theirs, model_params, vocab_size, arguments.batch, draw)
    compare_speed(theirs, model_params, vocab_size, arguments.batch, draw, arguments.rounds, arguments.steps)


def compare_losses(
    theirs: ModuleType, model_params: ModelParams, vocab_size: int, batch_size: int, draw: Callable[[], Tensor]
) -> None:
    """Twenty steps in fp32 from the same weights over the same batches."""
    hardware = Hardware("cpu", device(), "fp32", batch_size, compile=False, compile_reason="", threads=1)
    state = make_ours(model_params, vocab_size, hardware)
    other, optimizer = make_theirs(theirs, model_params, vocab_size)
    copy_weights(state.model, other)
    for block in other.transformer.h:  # GPT-2's, as ours; nanoGPT has the exact form, 1e-4 away in the loss
        block.mlp.gelu = nn.GELU(approximate="tanh")
    ours, nanogpt = step_ours(state, hardware, train_params()), step_theirs(other, optimizer, autocast=False)
    differences = []
    for _ in range(20):
        windows = draw()
        differences.append(abs(ours(windows) - nanogpt(windows)))
    print(f"20 steps in fp32 from equal weights: the losses differ by at most {max(differences):.1e}")


def compare_speed(
    theirs: ModuleType,
    model_params: ModelParams,
    vocab_size: int,
    batch_size: int,
    draw: Callable[[], Tensor],
    rounds: int,
    steps: int,
) -> None:
    """Rounds of some steps of each side in turn; the ratio of the medians."""
    hardware = choose_hardware(batch_size, model_params.context_length)
    sides = {name: build_side(name, theirs, model_params, vocab_size, hardware) for name in ("nanoGPT", "lmcore")}
    seconds = time_in_turns(sides, draw, rounds, steps)
    report_speed(seconds, model_params, vocab_size, hardware)
    print(
        f"lmcore ({hardware.precision}, compiled: {hardware.compile}) is {seconds['nanoGPT'] / seconds['lmcore']:.2f} x"
    )


def report_speed(seconds: dict[str, float], model_params: ModelParams, vocab_size: int, hardware: Hardware) -> None:
    """Print what each side makes of the machine in its `seconds` for a step; all take the whole batch at once."""
    tokens = hardware.micro_batch_size * model_params.context_length
    flops = estimate_flops(GPT.outline(model_params, vocab_size).count_parameters(), tokens)
    peak = measure_peak_flops(hardware.device, hardware.precision)
    for name, median in seconds.items():
        print(
            f"{name}: {1e3 * median:.0f} ms a step, {tokens / median:,.0f} tokens/s, {flops / median / 1e9:,.0f} "
            f"GFLOP/s, {flops / median / peak:.0%} of the {hardware.precision} matrix rate, {peak / 1e9:,.0f} GFLOP/s"
        )


def choose_hardware(batch_size: int, context_length: int) -> Hardware:
    """What `auto` gives here for a long run, with the whole batch at once."""
    request = read_section(HardwareParams, "hardware").model_copy(update={"micro_batch_size": batch_size})
    return resolve_hardware(request, read_params(), batch_size, context_length, 1e18)


def build_side(name: str, theirs: ModuleType, model_params: ModelParams, vocab_size: int, hardware: Hardware) -> Step:
    """A side as it trains by default on this machine."""
    if name == "lmcore":
        return step_ours(make_ours(model_params, vocab_size, hardware), hardware, train_params())
    other, optimizer = make_theirs(theirs, model_params, vocab_size)
    on_gpu = device() == "cuda"
    return step_theirs(torch.compile(other) if on_gpu else other, optimizer, autocast=on_gpu)


def make_ours(model_params: ModelParams, vocab_size: int, hardware: Hardware) -> TrainState:
    """Our model with AdamW as nanoGPT has it."""
    return build_state(GPT(model_params, vocab_size, seed=1), train_params(), hardware, World())


def step_ours(state: TrainState, hardware: Hardware, params: TrainParams) -> Step:
    """One whole update of ours."""
    world = World()

    def step(windows: Tensor) -> float:
        loss = accumulate_gradients(state, windows.to(hardware.device), 0, params, hardware, world)
        update_weights(state, loss, LEARNING_RATE, params)
        return loss.item()

    return step


def make_theirs(theirs: ModuleType, model_params: ModelParams, vocab_size: int) -> tuple[Any, torch.optim.Optimizer]:
    """Their model and optimizer."""
    config = theirs.GPTConfig(
        n_layer=model_params.n_layers,
        n_head=model_params.n_heads,
        n_embd=model_params.d_model,
        block_size=model_params.context_length,
        vocab_size=vocab_size,
        bias=False,
        dropout=0.0,
    )
    model = theirs.GPT(config).to(device())
    return model, model.configure_optimizers(0.1, LEARNING_RATE, (0.9, 0.99), device())


def step_theirs(model: Any, optimizer: torch.optim.Optimizer, *, autocast: bool) -> Step:
    """One whole update as nanoGPT's train.py does it."""

    def step(windows: Tensor) -> float:
        windows = windows.to(device())
        with torch.autocast(device(), torch.bfloat16, enabled=autocast):
            _, loss = model(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    return step


@torch.no_grad()
def copy_weights(ours: GPT, theirs: nn.Module) -> None:
    """Give theirs the weights of ours."""
    others = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        for mine, other in NAMES.items():
            name = name.replace(mine, other)
        others[name].copy_(weight)


def shape_params(shape: str) -> ModelParams:
    """GPT-2's blocks without biases, as nanoGPT trains them."""
    layers, heads, width, context = SHAPES[shape]
    return parse_section(
        ModelParams,
        "model",
        {
            "n_layers": layers,
            "n_heads": heads,
            "n_kv_heads": None,
            "d_model": width,
            "d_ff": None,
            "context_length": context,
            "dropout": 0.0,
            "norm": "layernorm",
            "position": "learned",
            "mlp": "gelu",
            "qk_norm": False,
            "bias": False,
            "tie_embeddings": True,
            "logit_softcap": None,
        },
    )


def train_params() -> TrainParams:
    """params.yaml's, with nanoGPT's optimizer."""
    return read_section(TrainParams, "train").model_copy(
        update={"optimizer": "adamw", "beta2": 0.99, "weight_decay": 0.1, "grad_clip": 1.0, "ema_decay": None}
    )


def device() -> str:
    """The card if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def read_tokens(path: Path) -> tuple[np.ndarray, int]:
    """The text's characters as numbers, and how many kinds there are."""
    characters, tokens = np.unique(np.array(list(path.read_text(encoding="utf-8"))), return_inverse=True)
    return tokens.astype(np.int64), len(characters)


def load_module(path: Path) -> ModuleType:
    """A Python file from elsewhere as a module."""
    specification = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["nanogpt_model"] = module
    specification.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
