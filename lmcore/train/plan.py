"""Plan of a training: its schedule and its hardware, settled once, before the model is built."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from lmcore.errors import ParameterError
from lmcore.hardware.distributed import World, launch
from lmcore.hardware.measure import measure_peak_flops, reset_peak_memory
from lmcore.hardware.params import HardwareParams
from lmcore.hardware.resolve import Hardware, claim_devices, resolve_hardware
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.tokens.batches import Batches
from lmcore.train.loss import LanguageModelLoss
from lmcore.train.memory import HardwarePlan, count_parameters, find_micro_batch, fit_to_memory
from lmcore.train.params import TrainParams
from lmcore.train.schedule import Schedule, estimate_flops, plan_schedule

MEASURE_PEAK_FLOPS = 1e13  # a training of a quarter of a minute on two cores: measuring takes 0.3 s


@dataclass(frozen=True)
class RunContext:
    """Schedule and hardware of a run, the same in all of its processes, and this process among them."""

    schedule: Schedule
    hardware: Hardware
    world: World

    @property
    def params(self) -> TrainParams:
        """The section `train`."""
        return self.schedule.params


def start_processes(request: HardwareParams, settings: dict[str, Any], batch_size: int, module: str) -> str:
    """Claim the devices of a training, start its processes if there are several, and return the device.

    See `claim_devices` and `launch`. `settings` is all of params.yaml, here and below.
    """
    device, processes = claim_devices(request, settings, batch_size)
    launch(processes, module)
    return device


def plan_hardware(
    request: HardwareParams,
    settings: dict[str, Any],
    params: TrainParams,
    model_params: ModelParams,
    vocab_size: int,
    tokens: int,
) -> HardwarePlan:
    """Resolve the hardware of a training on `tokens` tokens, with a micro-batch that fits into memory.

    Raises ParameterError for what the machine does not have.
    """
    flops = estimate_training_flops(model_params, vocab_size, tokens)
    hardware = resolve_hardware(request, settings, params.batch_size, model_params.context_length, flops)
    if params.lora_rank is not None and hardware.sharding == "full":
        raise ParameterError(
            "hardware.sharding=full: train.lora_rank keeps the whole model on each: set hardware.sharding=replicate"
        )
    return fit_to_memory(hardware, params, model_params, vocab_size)


def plan_run(
    request: HardwareParams,
    settings: dict[str, Any],
    params: TrainParams,
    model_params: ModelParams,
    batches: Batches,
    world: World,
) -> RunContext:
    """Plan the schedule and the hardware of a run on `batches`; all processes get the hardware of the main one.

    Each may measure and choose differently, and refuses what does not fit into its own memory. A run that is long
    enough to pay for it has its peak measured, while the other processes wait. Raises ParameterError.
    """
    schedule, vocab_size = plan_schedule(params, batches.context_length, batches.tokens), batches.shards.vocab_size
    tokens = schedule.steps * batches.tokens_per_step
    hardware = plan_hardware(request, settings, params, model_params, vocab_size, tokens).require_fit()
    if world.is_main and estimate_training_flops(model_params, vocab_size, tokens) > MEASURE_PEAK_FLOPS:
        peak = measure_peak_flops(hardware.device, hardware.precision) * world.size
        hardware = replace(hardware, peak_flops=peak)
        reset_peak_memory()
    return RunContext(schedule, world.broadcast(hardware), world)


def estimate_training_flops(model_params: ModelParams, vocab_size: int, tokens: int) -> float:
    """Return the floating-point operations of a training on `tokens` tokens, those of TiDAR's masks included."""
    parameters = count_parameters(model_params, vocab_size).all
    return estimate_flops(parameters, round(tokens * (1 + model_params.masks_per_token)))


def confirm_micro_batch(model: GPT, context: RunContext) -> RunContext:
    """On a GPU, try a micro-batch that nobody asked for, and halve it until it fits on each.

    Before the model is distributed: a GPU that runs out of memory would leave the others waiting. A divided model
    (`sharding: full`) cannot be tried alone and keeps what the estimate gave.
    """
    hardware, world = context.hardware, context.world
    if hardware.device != "cuda" or hardware.micro_batch_asked or hardware.sharding == "full":
        return context
    objective, size = LanguageModelLoss(model.to("cuda")), hardware.micro_batch_size
    windows = torch.zeros(size, model.params.context_length + 1, dtype=torch.int64, device="cuda")
    count = model.params.trained_mask_blocks  # the steps that have masks take more
    mask_blocks = torch.zeros(size, count, dtype=torch.int64, device="cuda") if count else None

    def try_step(size: int) -> None:
        blocks = None if mask_blocks is None else mask_blocks[:size]
        with hardware.autocast():
            losses = objective(windows[:size, :-1], windows[:size, 1:], blocks)
        losses.total.backward()

    found = find_micro_batch(try_step, size)
    objective.zero_grad(set_to_none=True)
    while world.any(found < size):
        size //= 2
    return replace(context, hardware=replace(hardware, micro_batch_size=size))
