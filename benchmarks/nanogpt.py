"""Training step beside nanoGPT's: same model, batches and optimizer.

    git clone https://github.com/karpathy/nanoGPT ../nanoGPT
    python -m benchmarks.nanogpt --nanogpt ../nanoGPT --text tinyshakespeare.txt            # 10.6M, 16 x 256 characters
    python -m benchmarks.nanogpt --nanogpt ../nanoGPT --text tinyshakespeare.txt --shape 124m --batch 4

First both train in fp32, eager, for 20 steps from the same weights, and the losses are compared step by step; then
each side does what it would do by default on this machine: nanoGPT in fp32, eager, as its documentation has it for a
CPU (on a CUDA card in bfloat16, compiled), and this project what `hardware.profile: auto` gives for a long run. Run it
on a quiet machine; `--sides lmcore` leaves the other side and the comparison out.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.steps import SHAPES, auto_hardware, build_step, device, gpt2_params
from benchmarks.turns import Draw, Step, Timing, time_in_turns
from lmcore.hardware.measure import measure_peak_flops
from lmcore.hardware.resolve import Hardware
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.train.params import TrainParams
from lmcore.train.schedule import estimate_flops

LEARNING_RATE = 1e-4  # small: at 1e-3 without a warm-up the loss jumps, and rounding grows to 0.1 in 20 steps
# nanoGPT's optimizer.
PARAMS = TrainParams(beta2=0.99)
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


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the losses, then the speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, for that side")
    parser.add_argument("--text", type=Path, required=True, help="a text file, taken by characters")
    parser.add_argument("--shape", choices=SHAPES, default="10m")
    parser.add_argument("--batch", type=int, default=16, help="sequences")
    parser.add_argument("--vocabulary", type=int, help="entries; by default as many as the text has characters")
    parser.add_argument("--sides", nargs="+", choices=["nanoGPT", "lmcore"], default=["nanoGPT", "lmcore"])
    parser.add_argument("--eager", action="store_true", help="not compiled")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
    arguments = parser.parse_args(argv)
    if "nanoGPT" in arguments.sides and not arguments.nanogpt:
        parser.error("the side nanoGPT needs --nanogpt")
    contest = open_contest(arguments)
    if len(arguments.sides) == 2:
        compare_losses(contest)
    hardware = contest.hardware
    peak = measure_peak_flops(hardware.device, hardware.precision)
    print(f"lmcore trains in {hardware.precision}, compiled: {hardware.compile}; here {peak / 1e9:,.0f} GFLOP/s")
    sides = {name: partial(build_side, arguments, name) for name in arguments.sides}
    report(time_in_turns(sides, arguments.rounds, arguments.steps), contest, peak)


@dataclass(frozen=True)
class Contest:
    """The settings that both sides have in common."""

    nanogpt: Path
    model_params: ModelParams
    vocab_size: int
    batch_size: int
    draw: Draw
    hardware: Hardware  # of ours


def open_contest(arguments: argparse.Namespace) -> Contest:
    """Return the settings; batches are the same in each process."""
    tokens, vocab_size = read_tokens(arguments.text)
    model_params = gpt2_params(arguments.shape)
    context, generator = model_params.context_length, np.random.default_rng(1)

    def draw() -> Tensor:
        starts = generator.integers(0, len(tokens) - context - 1, arguments.batch)
        return torch.from_numpy(np.stack([tokens[start : start + context + 1] for start in starts]))

    hardware = auto_hardware(arguments.batch, context, eager=arguments.eager)
    return Contest(arguments.nanogpt, model_params, arguments.vocabulary or vocab_size, arguments.batch, draw, hardware)


def compare_losses(contest: Contest) -> None:
    """Twenty steps in fp32 from the same weights over the same batches."""
    hardware = Hardware("cpu", device(), "fp32", contest.batch_size, compile=False, compile_reason="", threads=1)
    model = GPT(contest.model_params, contest.vocab_size, seed=1)
    ours = build_step(model, PARAMS, hardware, learning_rate=LEARNING_RATE)
    other, optimizer = make_theirs(contest)
    copy_weights(model, other)
    use_tanh_gelu(other)
    nanogpt = step_theirs(other, optimizer, autocast=False)
    differences = []
    for _ in range(20):
        windows = contest.draw()
        differences.append(abs(ours(windows) - nanogpt(windows)))
    print(f"20 steps in fp32 from equal weights: the losses differ by at most {max(differences):.1e}")


def report(timings: dict[str, Timing], contest: Contest, peak: float) -> None:
    """Print the rates of each side and their shares of `peak` FLOP/s; all take the whole batch at once."""
    tokens = contest.batch_size * contest.model_params.context_length
    flops = estimate_flops(GPT.outline(contest.model_params, contest.vocab_size).count_parameters(), tokens)
    for name, timing in timings.items():
        rate = flops / timing.seconds
        print(
            f"{name}: {1e3 * timing.seconds:.0f} ms a step, {tokens / timing.seconds:,.0f} tokens/s, "
            f"{rate / 1e9:,.0f} GFLOP/s, {rate / peak:.0%} of the peak, {timing.peak_memory / 1e9:.2f} GB"
        )
    if len(timings) == 2:
        print(f"lmcore is {timings['nanoGPT'].seconds / timings['lmcore'].seconds:.2f} x")


def build_side(arguments: argparse.Namespace, name: str) -> tuple[Step, Draw]:
    """Return a side's step as it trains by default on this machine."""
    contest = open_contest(arguments)
    if name == "lmcore":
        model = GPT(contest.model_params, contest.vocab_size, seed=1)
        return build_step(model, PARAMS, contest.hardware, learning_rate=LEARNING_RATE), contest.draw
    other, optimizer = make_theirs(contest)
    on_gpu = device() == "cuda"
    compiled = torch.compile(other) if on_gpu and not arguments.eager else other
    return step_theirs(compiled, optimizer, autocast=on_gpu), contest.draw


def make_theirs(contest: Contest) -> tuple[Any, torch.optim.Optimizer]:
    """Return nanoGPT's model and optimizer."""
    model = build_nanogpt(contest.nanogpt, contest.model_params, contest.vocab_size).to(device())
    return model, model.configure_optimizers(0.1, LEARNING_RATE, (0.9, 0.99), device())


def build_nanogpt(checkout: Path, params: ModelParams, vocab_size: int) -> Any:
    """Return the model of nanoGPT's file model.py in the shape of ours."""
    theirs = load_module(checkout / "model.py")
    config = theirs.GPTConfig(
        n_layer=params.n_layers,
        n_head=params.n_heads,
        n_embd=params.d_model,
        block_size=params.context_length,
        vocab_size=vocab_size,
        bias=False,
        dropout=0.0,
    )
    return theirs.GPT(config)


def use_tanh_gelu(nanogpt: Any) -> None:
    """GPT-2's GELU, as ours; nanoGPT has the exact form, 1e-4 away in the loss."""
    for block in nanogpt.transformer.h:
        block.mlp.gelu = nn.GELU(approximate="tanh")


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


def read_tokens(path: Path) -> tuple[np.ndarray, int]:
    """Return the text's characters as numbers, and the number of different ones."""
    characters, tokens = np.unique(np.array(list(path.read_text(encoding="utf-8"))), return_inverse=True)
    return tokens.astype(np.int64), len(characters)


def load_module(path: Path) -> ModuleType:
    """Import a Python file from elsewhere."""
    specification = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["nanogpt_model"] = module
    specification.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
