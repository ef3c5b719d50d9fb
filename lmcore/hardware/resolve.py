"""What a run uses of the machine: a profile, explicit requests on top, and what was resolved with its reasons.

A request changes speed and rounding only: the batches, their order and the loss stay those of the science parameters.
"""

import os
import shutil
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from lmcore.errors import ParameterError
from lmcore.hardware.distributed import is_worker
from lmcore.hardware.measure import DTYPES, claims_bf16, list_gpus, measure_cpu_rates, total_memory
from lmcore.hardware.params import Device, HardwareParams, Precision, Profile, Sharding
from lmcore.params import AutoOrCount, notify_once, parse_section
from lmcore.runtime.gpu_locks import claim_gpus

# Tokens that one forward and backward pass takes at once where micro_batch_size is auto, and memory allows: more bring
# no speed. Larger batches are accumulated.
MICRO_BATCH_TOKENS = {"cpu": 8_192, "cuda": 65_536, "mps": 16_384}

# Work (floating-point operations of the whole run) above which compiling is worth its 20 to 60 seconds. On two
# AVX512-BF16 cores it is won back after 6e12 to 1.8e13, for models of 1M to 10M parameters.
COMPILE_PAYS_FLOPS = {"cpu": 1.5e13, "cuda": 1e16}

# The rows that earlier versions had instead of `gpu`, and from how many bytes of a card's memory each was meant.
ROWS_BY_MEMORY = {"gpu-80gb": 80e9, "gpu-24gb": 24e9, "gpu-12gb": 12e9, "gpu-6gb": 0}
LOW_MEMORY = 8 << 30  # bytes: a computer sold with 8 GiB shows less

# Compute capabilities at which NVIDIA's cards got tensor cores for bf16 (Ampere) and for fp16 (Volta), and why the
# fastest precision of a card is not a faster one. ROCm counts from 9 (gfx90a is 9.0), so that its cards always pass.
CAPABILITIES: dict[Precision, tuple[tuple[int, int], str]] = {
    "bf16": ((8, 0), "has it"),
    "fp16": ((7, 0), "has no bf16"),
    "fp32": ((0, 0), "has no tensor cores"),
}
TRITON_CAPABILITY = (7, 0)  # torch/_inductor/exc.py, GPUTooOldForTriton


@dataclass(frozen=True)
class Hardware:
    """What a run really uses; each process takes `micro_batch_size` sequences at once.

    A micro-batch that was asked for is kept; another is an upper limit for `lmcore.train.memory.plan_hardware`.
    """

    profile: str
    device: str
    precision: Precision
    micro_batch_size: int
    compile: bool
    compile_reason: str
    threads: int
    precision_reason: str = "as asked"
    micro_batch_asked: bool = True
    activation_checkpointing: bool = False
    processes: int = 1
    machines: int = 1
    sharding: Sharding = "replicate"
    peak_flops: float | None = None  # FLOP/s of matrix products, all processes together, if measured

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass at this precision; weights and their sums stay fp32."""
        enabled = self.precision != "fp32"
        return torch.autocast(self.device, DTYPES[self.precision] if enabled else None, enabled=enabled)

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
    name, asked = _lay_over_profile(request, params)
    device = _resolve_device(asked.device)
    precision, precision_reason = resolve_precision(asked.precision, device)
    compiled, compile_reason = _resolve_compile(asked.compile, device, precision, training_flops)
    processes, machines = _count_processes(asked.processes, device, batch_size)
    wanted, most = asked.micro_batch_size, max(1, batch_size // processes)
    comfortable = max(1, MICRO_BATCH_TOKENS[device] // context_length)
    return Hardware(
        profile=name,
        device=device,
        precision=precision,
        micro_batch_size=min(most, comfortable if wanted == "auto" else wanted),
        compile=compiled,
        compile_reason=compile_reason,
        threads=torch.get_num_threads(),
        precision_reason=precision_reason,
        micro_batch_asked=wanted != "auto",
        activation_checkpointing=asked.activation_checkpointing,
        processes=processes,
        machines=machines,
        sharding=asked.sharding,
    )


def choose_device(request: HardwareParams, params: dict[str, Any]) -> str:
    """Where a stage computes that does not train. Raises ParameterError as `resolve_hardware` does."""
    return _resolve_device(_lay_over_profile(request, params)[1].device)


def claim_device(request: HardwareParams, params: dict[str, Any]) -> str:
    """Return `choose_device`'s device; a CUDA stage waits for a free GPU and holds it until it ends."""
    device = choose_device(request, params)
    if device == "cuda":
        _claim_gpus(1)
    return device


def claim_devices(request: HardwareParams, params: dict[str, Any], batch_size: int) -> tuple[str, int]:
    """Return the device of a training on batches of `batch_size`, and its number of processes, one GPU each.

    On CUDA this waits until so many GPUs are free; the processes hold them until they end. Raises ParameterError as
    `resolve_hardware` does.
    """
    asked = _lay_over_profile(request, params)[1]
    device = _resolve_device(asked.device)
    count, _ = _count_processes(asked.processes, device, batch_size)
    if device == "cuda":
        _claim_gpus(count)
    return device, count


def _claim_gpus(count: int) -> None:
    """Claim `count` GPUs, and make the first one the current device.

    torchrun's processes have their GPUs by their ranks: the first one on each machine claims them for all, and the
    others wait until it joins them (for as long as JOIN_TIMEOUT in lmcore.hardware.distributed).
    """
    names = list_gpus()
    if is_worker():
        if os.environ["LOCAL_RANK"] != "0":
            return
        count = int(os.environ["LOCAL_WORLD_SIZE"])
        names = names[:count]
    torch.cuda.set_device(claim_gpus(names, count)[0])


def _lay_over_profile(request: HardwareParams, params: dict[str, Any]) -> tuple[str, Profile]:
    """Return the profile's name, and its row with the explicit keys of the request on top."""
    profiles = params.get("profiles") or {}
    name = detect_profile(request.device or "auto") if request.profile == "auto" else request.profile
    if request.profile == "auto" and name == "gpu" and name not in profiles:  # a table of an earlier version
        rows = (row for row, least in ROWS_BY_MEMORY.items() if row in profiles and total_memory("cuda") >= least)
        name = next(rows, name)
    elif name in ROWS_BY_MEMORY and name not in profiles and "gpu" in profiles:
        notify_once(f"hardware.profile={name}: taken as gpu, which replaces it: set hardware.profile=gpu")
        name = "gpu"
    if name not in profiles:
        raise ParameterError(f"hardware.profile={name!r}: must be auto or a row of profiles: {', '.join(profiles)}")
    row = parse_section(Profile, f"profiles.{name}", profiles[name])
    return name, row.model_copy(update=request.model_dump(include=set(Profile.model_fields), exclude_none=True))


def detect_profile(wanted: Device = "auto") -> str:
    """Return the row of `profiles` for this machine: by its cards, else by its processor and memory."""
    device = _resolve_device(wanted)
    if device == "cuda":
        return "multi-gpu" if torch.cuda.device_count() > 1 else "gpu"
    if device == "mps":
        return "mps"
    if total_memory("cpu") <= LOW_MEMORY:
        return "cpu-low"
    return "cpu-amx" if _cpu_prefers_bf16() else "cpu"


def resolve_precision(request: Literal["auto"] | Precision, device: str) -> tuple[Precision, str]:
    """What is computed in, and why. Weights and their updates are fp32 in every case.

    | device                            | auto | fp32          | bf16                | fp16                          |
    |-----------------------------------|------|---------------|---------------------|-------------------------------|
    | cpu, bf16 products measured faster| bf16 | yes           | yes                 | refused: slower than both     |
    | cpu, any other                    | fp32 | yes           | yes, said to be slow| refused                       |
    | cuda, capability 8.0+, and ROCm   | bf16 | TF32 products | yes                 | yes, the loss is scaled       |
    | cuda, 7.x                         | fp16 | yes           | refused             | yes, the loss is scaled       |
    | cuda, below                       | fp32 | yes           | refused             | refused                       |
    | mps                               | fp32 | yes           | refused             | refused                       |

    Raises ParameterError for what is refused.
    """
    if request == "auto":
        return _fastest_precision(device)
    refusal = None
    if device == "cuda" and (capability := _compute_capability()) < (least := CAPABILITIES[request][0]):
        refusal = "needs compute capability {}.{}, this card has {}.{}".format(*least, *capability)
    elif (device, request) in {("cpu", "fp16"), ("mps", "fp16"), ("mps", "bf16")}:
        refusal = f"not on device {device}"
    if refusal:
        raise ParameterError(f"hardware.precision={request!r}: {refusal}; set hardware.precision=auto")
    if request != "bf16" or device != "cpu":
        return request, "as asked"
    return request, f"as asked, {'' if _cpu_prefers_bf16() else 'but slow here: '}{_compare_rates()}"


def _fastest_precision(device: str) -> tuple[Precision, str]:
    if device == "cpu":
        if not claims_bf16():
            return "fp32", "the processor has no instructions for bf16 products"
        return "bf16" if _cpu_prefers_bf16() else "fp32", _compare_rates()
    if device == "mps":
        return "fp32", "nothing else is tried on mps"
    capability = _compute_capability()
    precision = next(name for name, (least, _) in CAPABILITIES.items() if capability >= least)
    return precision, "compute capability {}.{} {}".format(*capability, CAPABILITIES[precision][1])


def _compute_capability() -> tuple[int, int]:
    """The oldest card's: all processes compute alike."""
    return min(torch.cuda.get_device_capability(card) for card in range(torch.cuda.device_count()))


def _cpu_prefers_bf16() -> bool:
    """By its instructions and by trial: an emulator may claim what it does slowly."""
    fp32, bf16 = measure_cpu_rates() if claims_bf16() else (0.0, 0.0)
    return bf16 > fp32


def _compare_rates() -> str:
    fp32, bf16 = measure_cpu_rates()
    return f"measured {bf16 / 1e9:.1f} GFLOP/s in bf16, {fp32 / 1e9:.1f} in fp32, on one core"


def _resolve_device(request: Device) -> str:
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if request == "auto":
        return next(device for device, is_present in present.items() if is_present)
    if not present[request]:
        raise ParameterError(f"hardware.device={request!r}: this machine has none; set hardware.device=auto")
    return request


def _resolve_compile(
    request: Literal["auto"] | bool, device: str, precision: Precision, flops: float
) -> tuple[bool, str]:
    """Whether to compile the training step, and why."""
    if request is False:
        return False, "as asked"
    obstacle = explain_uncompilable(device)
    if request is True:
        if obstacle:
            raise ParameterError(f"hardware.compile=true: {obstacle}; set hardware.compile=auto")
        return True, "as asked"
    if obstacle:
        return False, obstacle
    # On two AVX2 cores in fp32 a 1M model's step is matrix products: 9,060 tokens/s compiled, 8,800 to 10,900 eager.
    if device == "mps" or (device == "cpu" and precision != "bf16"):
        return False, f"eager is as fast in {precision} on this {device}"
    if flops < COMPILE_PAYS_FLOPS[device]:
        return False, f"{flops:.0e} operations are too few to win back the compilation"
    return True, f"{flops:.0e} operations win back the compilation"


def explain_uncompilable(device: str) -> str | None:
    """What torch.compile lacks here, or None."""
    if device == "cpu" and not shutil.which(compiler := os.environ.get("CXX", "g++")):
        return f"no C++ compiler found ({compiler})"
    if device == "cuda" and _compute_capability() < TRITON_CAPABILITY:
        return "Triton needs compute capability {}.{}, this card has {}.{}".format(
            *TRITON_CAPABILITY, *_compute_capability()
        )
    return None


def _count_processes(request: AutoOrCount, device: str, batch_size: int) -> tuple[int, int]:
    """Return all processes, and the machines that they are on: torchrun's if it started this one, else so many here.

    `auto` is one per GPU, or the most below that among whom the batch can be divided.
    """
    if is_worker():
        processes = int(os.environ["WORLD_SIZE"])
        return processes, processes // int(os.environ["LOCAL_WORLD_SIZE"])
    gpus = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device)
    if request == "auto":
        return next(count for count in range(gpus or 1, 0, -1) if batch_size % count == 0), 1
    if gpus is not None and request > gpus:
        raise ParameterError(f"hardware.processes={request}: device {device} takes {gpus}; set hardware.processes=auto")
    return request, 1
