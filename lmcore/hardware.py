"""What this machine runs: a profile, explicit requests on top, and what was resolved with its reasons.

A request changes speed and rounding only: the batches, their order and the loss stay those of the science parameters.
"""

import os
import resource
import shutil
import sys
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from pydantic import Field

from lmcore.errors import ParameterError
from lmcore.params import Int, Section, parse_section

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]

# Tokens that one forward and backward pass takes at once where micro_batch_size is empty. Activations of a 10M to
# 100M model then stay within 2 GB; larger batches are accumulated.
MICRO_BATCH_TOKENS = {"cpu": 8_192, "cuda": 65_536, "mps": 16_384}

# Work (floating-point operations of the whole run) above which compiling is worth its 20 to 60 seconds.
COMPILE_PAYS_FLOPS = {"cpu": 3e13, "cuda": 1e16}


class HardwareParams(Section):
    """The request: a profile's name or `auto`, and what overrides it (empty: as the profile says)."""

    profile: str
    device: Device | None
    precision: Precision | None
    micro_batch_size: Int | None = Field(ge=1)
    compile: Literal["auto"] | bool | None


class Profile(Section):
    """One row of the `profiles` table of params.yaml."""

    device: Device
    precision: Precision
    micro_batch_size: Int | None = Field(ge=1)
    compile: Literal["auto"] | bool


@dataclass(frozen=True)
class Hardware:
    """What a run really uses."""

    profile: str
    device: str
    precision: Literal["fp32", "bf16"]
    micro_batch_size: int
    compile: bool
    compile_reason: str
    threads: int

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass at this precision; weights and their sums stay fp32."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    def describe(self) -> dict[str, Any]:
        """Every field, and the names of the devices, for summary.json and the tracker."""
        name = torch.cuda.get_device_name() if self.device == "cuda" else str(torch.cpu.get_capabilities()["cpu_name"])
        return {**asdict(self), "device_name": name, "torch": torch.__version__}


def resolve_hardware(
    request: HardwareParams,
    params: dict[str, Any],
    batch_size: int,
    context_length: int,
    training_flops: float,
) -> Hardware:
    """Profile, then explicit keys, then what `auto` means here. `params` is the whole params.yaml.

    Raises ParameterError for an unknown profile or for something that this machine does not have.
    """
    profiles = params.get("profiles") or {}
    name = detect_profile() if request.profile == "auto" else request.profile
    if name not in profiles:
        raise ParameterError(f"hardware.profile={name!r}: must be auto or a row of profiles: {', '.join(profiles)}")
    row = parse_section(Profile, f"profiles.{name}", profiles[name])
    device = _resolve_device(request.device or row.device)
    asked = row.compile if request.compile is None else request.compile
    compiled, reason = _resolve_compile(asked, device, training_flops)
    return Hardware(
        profile=name,
        device=device,
        precision=_resolve_precision(request.precision or row.precision, device),
        micro_batch_size=min(
            batch_size,
            request.micro_batch_size or row.micro_batch_size or max(1, MICRO_BATCH_TOKENS[device] // context_length),
        ),
        compile=compiled,
        compile_reason=reason,
        threads=torch.get_num_threads(),
    )


def detect_profile() -> str:
    """`gpu`, `mps`, `cpu-bf16` (a processor with bfloat16 matrix instructions) or `cpu`."""
    device = _resolve_device("auto")
    if device == "cpu":
        return "cpu-bf16" if _cpu_multiplies_bf16() else "cpu"
    return {"cuda": "gpu", "mps": "mps"}[device]


def _cpu_multiplies_bf16() -> bool:
    """Without these instructions bfloat16 is slower than fp32: 1.2 against 120 GFLOP/s on a two-core AVX2 machine."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _resolve_device(request: Device) -> str:
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if request == "auto":
        return next(device for device, is_present in present.items() if is_present)
    if not present[request]:
        raise ParameterError(f"hardware.device={request!r}: this machine has none; set hardware.device=auto")
    return request


def _resolve_precision(request: Precision, device: str) -> Literal["fp32", "bf16"]:
    fast = {"cuda": torch.cuda.is_available() and torch.cuda.is_bf16_supported(), "cpu": _cpu_multiplies_bf16()}
    if request == "auto":
        return "bf16" if fast.get(device, False) else "fp32"
    if request == "bf16" and device == "mps":
        raise ParameterError("hardware.precision='bf16': not on device mps; set hardware.precision=fp32")
    return request


def _resolve_compile(request: Literal["auto"] | bool, device: str, flops: float) -> tuple[bool, str]:
    """Whether to compile the training step, and why."""
    if request != "auto":
        return request, "as asked"
    if device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        return False, "no C++ compiler found"
    # On two AVX2 cores in fp32 a 1M model's step is matrix products: 9,060 tokens/s compiled, 8,800 to 10,900 eager.
    if device == "mps" or (device == "cpu" and not _cpu_multiplies_bf16()):
        return False, f"eager is as fast on this {device}"
    if flops < COMPILE_PAYS_FLOPS[device]:
        return False, f"{flops:.0e} operations are too few to win back the compilation"
    return True, f"{flops:.0e} operations win back the compilation"


def peak_memory_bytes() -> int:
    """The most memory that this process has held so far: the device's where it has its own, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
