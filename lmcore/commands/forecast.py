"""Forecast of a training before it runs: parameters, tokens, memory, and the time that this machine takes."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmcore.hardware.measure import measure_peak_flops
from lmcore.hardware.params import HardwareParams
from lmcore.hardware.resolve import Hardware
from lmcore.model.params import ModelParams
from lmcore.params import parse_section
from lmcore.train.memory import MemoryEstimate, count_parameters
from lmcore.train.params import TrainParams
from lmcore.train.plan import estimate_training_flops, plan_hardware
from lmcore.train.schedule import plan_schedule
from lmcore.train_tokenizer.params import TokenizerParams
from lmcore.train_tokenizer.train_tokenizer import expect_vocabulary

# Share of the fastest matrix product that a training step is taken to reach. On two cores with AMX a 10.6M model had
# 0.54 in fp32 and 0.27 in bfloat16, compiled; on one large GPU 0.5 is what this project aims at.
EFFICIENCY = 0.4
EXPLANATION = f"6 operations per parameter and token, at {EFFICIENCY:.0%} of its fastest matrix product"


measure_peak = functools.cache(measure_peak_flops)  # by device and precision, once per process


@dataclass(frozen=True)
class Size:
    """Sizes that do not depend on the machine; `tokens` and `flops` are None if the corpus decides (train.epochs)."""

    parameters: int
    vocab_size: int
    tokens: int | None
    flops: float | None  # of the whole training


@dataclass(frozen=True)
class Forecast:
    """A size and what this machine makes of it. Memory is a process's; `seconds` is None where the tokens are."""

    size: Size
    hardware: Hardware
    memory: MemoryEstimate
    obstacle: str | None  # why a step does not fit into what is free; `memory` is that of a single sequence then
    seconds: float | None


def measure_size(values: Mapping[str, Any]) -> Size:
    """The size of what `values` (all of params.yaml) ask for. Raises ParameterError."""
    model = parse_section(ModelParams, "model", values.get("model"))
    train = parse_section(TrainParams, "train", values.get("train"))
    vocab_size = expect_vocabulary(parse_section(TokenizerParams, "train_tokenizer", values.get("train_tokenizer")))
    parameters, tokens, flops = count_parameters(model, vocab_size).all, None, None
    if train.epochs is None:
        steps = plan_schedule(train, model.context_length, 0).steps
        tokens = steps * train.batch_size * model.context_length
        flops = estimate_training_flops(model, vocab_size, tokens)
    return Size(parameters, vocab_size, tokens, flops)


def forecast(values: Mapping[str, Any]) -> Forecast:
    """Return the forecast for `values` (all of params.yaml). Raises ParameterError for what this machine lacks."""
    size = measure_size(values)
    model = parse_section(ModelParams, "model", values.get("model"))
    train = parse_section(TrainParams, "train", values.get("train"))
    request = parse_section(HardwareParams, "hardware", values.get("hardware"))
    plan = plan_hardware(request, dict(values), train, model, size.vocab_size, size.tokens or 0)
    hardware = plan.hardware
    gpus = hardware.processes if hardware.device == "cuda" else 1  # elsewhere all processes share one device
    seconds = size.flops and size.flops / (EFFICIENCY * gpus * measure_peak(hardware.device, hardware.precision))
    return Forecast(size, *plan, seconds)
