"""What a machine is asked for and what it gives; other machines are played by their capabilities."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lmcore.errors import ParameterError
from lmcore.hardware import Hardware, HardwareParams, detect_profile, peak_memory_bytes, resolve_hardware
from lmcore.params import read_params

AUTO = HardwareParams(profile="auto", device=None, precision=None, micro_batch_size=None, compile=None)


@pytest.fixture(params=["plain", "amx"])
def cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine without an accelerator, with and without bfloat16 matrix instructions."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    capabilities = {"amx_bf16": request.param == "amx", "cpu_name": "a test"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/g++")
    return str(request.param)


def resolve(flops: float = 1e12, batch_size: int = 64, **changes: Any) -> Hardware:
    return resolve_hardware(AUTO.model_copy(update=changes), read_params(), batch_size, 256, flops)


def test_auto_uses_bfloat16_where_it_is_fast(cpu: str) -> None:
    assert detect_profile() == ("cpu-bf16" if cpu == "amx" else "cpu")
    assert resolve().precision == ("bf16" if cpu == "amx" else "fp32")
    assert resolve(precision="fp32").precision == "fp32"


def test_compiling_must_win_back_its_time(cpu: str) -> None:
    assert not resolve(flops=1e12).compile
    assert resolve(flops=1e12, compile=True).compile
    assert resolve(flops=1e16).compile == (cpu == "amx")
    assert not resolve(flops=1e16, compile=False).compile


def test_without_a_compiler_nothing_is_compiled(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    hardware = resolve(flops=1e16)
    assert not hardware.compile
    assert cpu == "plain" or "no C++ compiler" in hardware.compile_reason


def test_the_micro_batch_is_at_most_the_batch(cpu: str) -> None:
    assert resolve(batch_size=4).micro_batch_size == 4
    assert resolve(batch_size=4096).micro_batch_size == 32  # 8,192 tokens
    assert resolve(batch_size=4096, micro_batch_size=7).micro_batch_size == 7
    assert resolve(batch_size=4, micro_batch_size=7).micro_batch_size == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"profile": "gpuu"}, r"hardware.profile='gpuu': must be auto or a row of profiles: cpu, "),
        ({"device": "cuda"}, r"hardware.device='cuda': this machine has none; set hardware.device=auto"),
        ({"profile": "gpu"}, r"this machine has none"),
        ({"profile": "mps"}, r"this machine has none"),
    ],
)
def test_what_is_not_there_is_named(cpu: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        resolve(**change)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own figure lies in /proc")
def test_memory_is_what_the_kernel_says() -> None:
    status = Path("/proc/self/status").read_text()
    high_water_mark = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    assert peak_memory_bytes() == pytest.approx(high_water_mark, rel=0.02)


def test_this_machine_is_described() -> None:
    described = resolve().describe()
    assert described["device_name"]
    assert described["torch"] == torch.__version__
