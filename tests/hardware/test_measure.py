"""Memory by the kernel's files, played in a folder; rates by what this machine really does."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmcore.hardware.measure import (
    available_memory,
    claims_bf16,
    measure_cpu_rates,
    measure_peak_flops,
    total_memory,
)

GROUP = "user.slice/job"
UNLIMITED_1 = 9223372036854771712  # what version 1 says for none


def play_kernel(root: Path, files: dict[str, str]) -> Path:
    """A file system with 16 GiB of memory, 12 of them free, and `files`."""
    meminfo = {"proc/meminfo": f"MemTotal: {16 << 20} kB\nMemFree: 1024 kB\nMemAvailable: {12 << 20} kB\n"}
    for name, text in {**meminfo, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def version_2(group: str, limit: str, used: int, cached: int) -> dict[str, str]:
    folder = f"sys/fs/cgroup/{group}"
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 7\ninactive_file {cached}\n",
    }


def version_1(group: str, limit: int, used: int, cached: int) -> dict[str, str]:
    folder = f"sys/fs/cgroup/memory/{group}"
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": f"inactive_file 5\ntotal_inactive_file {cached}\n",
    }


MEMBER_2 = {"proc/self/cgroup": f"0::/{GROUP}\n"}
MEMBER_1 = {"proc/self/cgroup": f"4:memory:/{GROUP}\n3:cpuset:/\n0::/\n"}
GB = 1 << 30


@pytest.mark.parametrize(
    ("files", "total", "available"),
    [
        ({}, 16 * GB, 12 * GB),
        (MEMBER_2 | version_2(GROUP, "max", 3 * GB, 0), 16 * GB, 12 * GB),
        (MEMBER_2 | version_2(GROUP, str(4 * GB), 3 * GB, 1 * GB), 4 * GB, 2 * GB),
        (MEMBER_2 | version_2(GROUP, "max", 0, 0) | version_2("user.slice", str(6 * GB), GB, 0), 6 * GB, 5 * GB),
        (MEMBER_2 | version_2("", str(2 * GB), GB, 0), 2 * GB, 1 * GB),  # in a container: the path is the host's
        (MEMBER_1 | version_1(GROUP, UNLIMITED_1, 3 * GB, 0), 16 * GB, 12 * GB),
        (MEMBER_1 | version_1(GROUP, 4 * GB, 3 * GB, 1 * GB), 4 * GB, 2 * GB),
        (MEMBER_1 | version_1("", 2 * GB, GB, 0), 2 * GB, 1 * GB),
        (MEMBER_2 | version_2(GROUP, str(14 * GB), 0, 0), 14 * GB, 12 * GB),
    ],
)
def test_the_lowest_limit_counts(tmp_path: Path, files: dict[str, str], total: int, available: int) -> None:
    root = play_kernel(tmp_path, files)
    assert total_memory("cpu", root) == total
    assert available_memory("cpu", root) == available


def test_without_the_kernels_files_memory_is_what_the_system_has(tmp_path: Path) -> None:
    assert total_memory("cpu", tmp_path) == available_memory("cpu", tmp_path) > 1 << 28


def test_this_machine_has_memory() -> None:
    assert 1 << 26 < available_memory("cpu") < total_memory("cpu")


def test_cards_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        def __init__(self, total_memory: int) -> None:
            self.total_memory = total_memory

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda card: Card([24, 12][card]))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5, 24))
    assert total_memory("cuda") == 12
    assert available_memory("cuda") == 5


@pytest.mark.parametrize(
    ("capabilities", "claims"),
    [({"avx2": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"sve_bf16": True}, True)],
)
def test_bfloat16_goes_by_instructions(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], claims: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert claims_bf16() == claims


def test_rates_are_measured_once_and_leave_no_trace() -> None:
    state = torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        rates = measure_cpu_rates()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert min(rates) > 1e8
    measured = measure_cpu_rates.cache_info().misses
    assert measure_cpu_rates() == rates
    assert measure_cpu_rates.cache_info().misses == measured
    assert torch.equal(torch.get_rng_state(), state)


def test_the_peak_is_that_of_the_fastest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose products reach 1, 2, 4, 2 TFLOP/s as they grow, until the next would take too long."""
    rates = {256: 1e12, 512: 2e12, 1024: 4e12, 2048: 2e12, 4096: 1e12}
    tried = []

    def play_product(device: str, dtype: torch.dtype, size: int, repeats: int) -> float:
        tried.append(size)
        return 2 * size**3 / rates[size]

    monkeypatch.setattr("lmcore.hardware.measure._time_product", play_product)
    assert measure_peak_flops("cpu", "bf16") == 4e12
    assert tried == [256, 512, 1024, 2048, 4096]
    monkeypatch.setattr("lmcore.hardware.measure.available_memory", lambda _: 4 * 3 * 512**2)
    assert measure_peak_flops("cpu", "bf16") == 2e12, "larger products would not leave half of the memory free"


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's switch")
def test_freed_memory_is_there_for_the_next_tensor() -> None:
    """Sixty times 64 MB, 16,384 pages each: the kernel is asked for a few of them (small ones settle between)."""
    program = """
import resource, sys, torch
from lmcore.hardware.measure import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    torch.ones(16 << 20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 16384)
"""
    times = {}
    for way in ("default", "kept"):
        finished = subprocess.run([sys.executable, "-c", program, way], check=True, capture_output=True, text=True)
        times[way] = float(finished.stdout)
    assert times["kept"] < 20
    assert times["default"] > 57


def test_the_peak_is_what_was_held() -> None:
    """In a process of its own: this one may have held much more before."""
    program = """
import torch
from lmcore.hardware.measure import peak_memory_bytes
before = peak_memory_bytes()
held = torch.ones(before >> 2)  # as many bytes as ever so far
print(before, peak_memory_bytes())
"""
    finished = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    before, after = map(int, finished.stdout.split())
    assert before > 1 << 26, "torch alone takes more"
    assert after - before > 0.5 * before


@pytest.mark.slow
def test_the_peak_is_not_that_of_what_started_us() -> None:
    """A parent of 2 GB starts a process that holds next to nothing."""
    child = "from lmcore.hardware.measure import peak_memory_bytes; print(peak_memory_bytes())"
    program = f"""
import subprocess, sys
held = b"x" * (2 << 30)
subprocess.run([sys.executable, "-c", {child!r}], check=True)
"""
    finished = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert 1 << 26 < int(finished.stdout) < 1 << 30
