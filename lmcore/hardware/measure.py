"""What there is to compute with: memory, and the rates that matrix products really reach."""

import ctypes
import functools
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Instructions that multiply bfloat16 matrices, as torch names them. A processor without any of them works on bfloat16
# number by number: 1.2 against 120 GFLOP/s on two AVX2 cores.
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")
PEAK_SIZES = (256, 512, 1024, 2048, 4096, 8192)
PEAK_SECONDS = 0.2  # for all sizes; the next one takes eight times as long

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)

# Where control groups keep their memory: the mount, then the files with limit, use, and the key of cached files.
GROUPS_1 = ("sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
GROUPS_2 = ("sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file"))


def claims_bf16() -> bool:
    """Whether the processor has instructions for bfloat16 matrices."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in BF16_INSTRUCTIONS)


@functools.cache
def measure_cpu_rates() -> tuple[float, float]:
    """FLOP/s of an fp32 and of a bf16 matrix product on one core, the best of five taken in turn.

    One thread: on busy cores two wait for each other, and a product of 0.2 ms took 16. Costs 10 ms where bfloat16 is
    fast and 140 ms where it is not; measured once per process.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = [[_time_product("cpu", DTYPES[name], 256, 1) for name in ("fp32", "bf16")] for _ in range(5)]
    finally:
        torch.set_num_threads(threads)
    fp32, bf16 = (2 * 256**3 / min(column) for column in zip(*times, strict=True))
    return fp32, bf16


def measure_peak_flops(device: str, precision: str) -> float:
    """FLOP/s of the fastest matrix product that this machine does now: what a model's rate is a share of (its MFU).

    Square products of growing size on one process's threads or one card, until a size takes too long or too much
    memory: less than 0.3 s on a CPU. In fp32 on CUDA they use TF32 where training does. Beside another busy process the
    figure is low.
    """
    dtype, peak, deadline = DTYPES[precision], 0.0, time.perf_counter() + PEAK_SECONDS
    for size in PEAK_SIZES:
        if peak and 3 * size**2 * dtype.itemsize > available_memory(device) / 2:
            break
        seconds = _time_product(device, dtype, size, 3)
        peak = max(peak, 2 * size**3 / seconds)
        if time.perf_counter() + 2 * 8 * seconds > deadline:
            break
    return peak


def _time_product(device: str, dtype: torch.dtype, size: int, repeats: int) -> float:
    """Seconds of one product of two square matrices, the best of `repeats` after a first one that does not count."""
    synchronize: Callable[[], None] = torch.accelerator.synchronize if device != "cpu" else lambda: None
    # Random numbers: a card that multiplies zeros stays cool and runs faster. A generator of their own: training's
    # dropout must not depend on a measurement.
    generator = torch.Generator(device).manual_seed(0)
    first, second = (torch.rand(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    # Enough products at a time that starting them costs a card nothing that shows.
    count = 8 if device == "cuda" else 1
    seconds = []
    for _ in range(repeats + 1):
        synchronize()
        started = time.perf_counter()
        for _ in range(count):
            first @ second
        synchronize()
        seconds.append((time.perf_counter() - started) / count)
    return min(seconds[1:])


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones, for the life of the process.

    By default it maps each large tensor anew and unmaps it, and every step begins by faulting its pages in again. Kept,
    a compiled step of 10.6M parameters at 16 x 256 took 502 ms instead of 573, one of 124M at 4 x 256 1.47 s instead of
    2.2, in up to 3 % more memory (medians of alternating runs of `benchmarks.nanogpt` on two cores). Other C libraries
    have their own ways and are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        libc.mallopt(M_MMAP_MAX, 0)


def list_gpus() -> list[str]:
    """Return the UUIDs of the CUDA devices that this process may use, in torch's order."""
    return [str(torch.cuda.get_device_properties(gpu).uuid) for gpu in range(torch.cuda.device_count())]


def total_memory(device: str, root: Path = Path("/")) -> int:
    """Bytes that could ever be free: the smallest card's, or the main memory within the limits of control groups."""
    if device == "cuda":
        return min(torch.cuda.get_device_properties(card).total_memory for card in range(torch.cuda.device_count()))
    main = _read_size(root / "proc/meminfo", "MemTotal") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([main, *(limit for limit, _ in _control_groups(root))])


def available_memory(device: str, root: Path = Path("/")) -> int:
    """Bytes that are free now: on this process's card, or in main memory and every control group that confines us.

    What the kernel would give up for us (its cache of files) counts as free. macOS has no such figure: there it is
    the whole memory. `root` is the file system that /proc and /sys are read from.
    """
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free
    main = _read_size(root / "proc/meminfo", "MemAvailable") or total_memory(device, root)
    return min([main, *(limit - used for limit, used in _control_groups(root))])


def peak_memory_bytes() -> int:
    """The most memory that this process has held so far: the device's where it has its own, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, kilobytes elsewhere
    # Linux's ru_maxrss begins with what the process that started this one held.
    own = _read_size(Path("/proc/self/status"), "VmHWM")
    return own or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> None:
    """Give back what a measurement has held of the card, and forget that it did. Resident memory cannot be reset."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _read_size(path: Path, key: str) -> int | None:
    """A line of one of Linux's files in /proc, in bytes; None on other systems."""
    if not path.exists():
        return None
    return int(path.read_text().partition(f"{key}:")[2].split()[0]) * 1024


def _control_groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each control group (version 1 and 2) around this process that limits memory.

    Cached files count as unused, since they make room.
    A line of /proc/self/cgroup is `number:controllers:path`, version 2's `0::path`. Inside a container the path may be
    the host's and lead nowhere; then the container's own group is the root of what is mounted.
    """
    membership = root / "proc/self/cgroup"
    lines = membership.read_text().splitlines() if membership.exists() else []
    for controllers, path in (line.split(":", 2)[1:] for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        place, (limit, use, cached) = GROUPS_1 if controllers else GROUPS_2
        folder = root / place / path.strip("/")
        for group in (folder, *folder.parents):
            is_limiting = group.is_relative_to(root / place) and (group / limit).exists()
            if is_limiting and (size := (group / limit).read_text().strip()) != "max":
                statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                yield int(size), int((group / use).read_text()) - int(statistics[cached])
