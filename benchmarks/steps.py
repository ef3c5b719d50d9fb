"""Models and training steps that several benchmarks measure."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.turns import Step
from lmcore.hardware.distributed import World
from lmcore.hardware.params import HardwareParams
from lmcore.hardware.resolve import Hardware, resolve_hardware, resolve_precision
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.params import read_params
from lmcore.train.params import TrainParams
from lmcore.train.step import Batch, accumulate_gradients, update_weights
from lmcore.train.trainer import build_state

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"n_layers": 1, "n_heads": 2, "d_model": 32, "context_length": 32},  # to see that a benchmark runs
    "small": {"n_layers": 4, "n_heads": 4, "d_model": 128, "context_length": 256},
    "3m": {"n_layers": 4, "n_heads": 4, "d_model": 256, "context_length": 512},
    "10m": {"n_layers": 6, "n_heads": 6, "d_model": 384, "context_length": 256},
    "124m": {"n_layers": 12, "n_heads": 12, "d_model": 768, "context_length": 256},
}


def gpt2_params(shape: str, **changes: Any) -> ModelParams:
    """Return GPT-2's blocks without biases, as nanoGPT trains them, in one of SHAPES."""
    blocks = {"norm": "layernorm", "position": "learned", "mlp": "gelu", "qk_norm": False}
    return ModelParams(**{**SHAPES[shape], **blocks, **changes})


def device() -> str:
    """Return cuda if there is such a device, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def plain_hardware(batch_size: int, *, compiled: bool) -> Hardware:
    """Return the processor in the precision that `auto` takes, the whole batch at once."""
    precision, reason = resolve_precision("auto", "cpu")
    threads = torch.get_num_threads()
    return Hardware("cpu", "cpu", precision, batch_size, compile=compiled, compile_reason=reason, threads=threads)


def auto_hardware(batch_size: int, context_length: int, *, eager: bool) -> Hardware:
    """Return what `hardware.profile: auto` gives for a long run, with the whole batch at once."""
    request = HardwareParams(micro_batch_size=batch_size, compile=False if eager else None)
    return resolve_hardware(request, read_params(), batch_size, context_length, 1e18)


def build_step(
    model: GPT,
    params: TrainParams,
    hardware: Hardware,
    *,
    learning_rate: float | None = None,
    choose_blocks: Callable[[], Tensor | None] = lambda: None,
) -> Step:
    """Return a function that makes one update of the model from windows of tokens and returns the loss."""
    world = World()
    state = build_state(model, params, hardware, world)
    rate = learning_rate or params.learning_rate

    def step(windows: Tensor) -> float:
        batch = Batch(windows.to(hardware.device), choose_blocks())
        loss = accumulate_gradients(state, batch, 0, params, hardware, world)
        update_weights(state, loss.total, rate, params)
        return loss.total.item()

    return step
