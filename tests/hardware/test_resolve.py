"""What a machine is asked for and what it gives; other machines are played by their capabilities."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lmcore.errors import ParameterError
from lmcore.hardware.distributed import TORCHRUN_VARIABLES
from lmcore.hardware.params import HardwareParams
from lmcore.hardware.resolve import ROWS_BY_MEMORY, Hardware, detect_profile, resolve_hardware
from lmcore.params import notify_once, read_params

AUTO = HardwareParams(
    profile="auto",
    device=None,
    precision=None,
    micro_batch_size=None,
    compile=None,
    activation_checkpointing=None,
    processes=None,
    sharding=None,
    workers="auto",
    data_engine="local",
)
# Rates of fp32 and bf16 products, FLOP/s, that the played processors reach.
RATES = {"plain": (1.2e11, 1.2e9), "amx": (1.9e11, 1.2e12), "emulated": (1.2e11, 1.1e11)}
Play = Callable[..., None]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Become another machine: its processor, its memory, its cards by capability, or Apple's device."""

    def become(
        processor: str = "plain", memory: float = 32e9, cards: tuple[tuple[int, int], ...] = (), mps: bool = False
    ) -> None:
        capabilities = {"amx_bf16": processor != "plain", "cpu_name": "a test"}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        monkeypatch.setattr("lmcore.hardware.resolve.measure_cpu_rates", lambda: RATES[processor])
        monkeypatch.setattr("lmcore.hardware.resolve.total_memory", lambda _: memory)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda card: cards[card])
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/g++")

    return become


@pytest.fixture(params=["plain", "amx"])
def cpu(request: pytest.FixtureRequest, play: Play) -> str:
    """A machine without an accelerator, with and without bfloat16 matrix instructions."""
    play(request.param)
    return str(request.param)


def resolve(flops: float = 1e12, batch_size: int = 64, **changes: Any) -> Hardware:
    return resolve_hardware(AUTO.model_copy(update=changes), read_params(), batch_size, 256, flops)


@pytest.mark.parametrize(
    ("machine", "profile"),
    [
        ({}, "cpu"),
        ({"processor": "amx"}, "cpu-amx"),
        ({"processor": "emulated"}, "cpu"),
        ({"processor": "amx", "memory": 8.2e9}, "cpu-low"),
        ({"mps": True}, "mps"),
        ({"cards": [(8, 6)], "memory": 4.1e9}, "gpu"),
        ({"cards": [(9, 0)], "memory": 85e9}, "gpu"),
        ({"cards": [(9, 0), (9, 0)], "memory": 85e9}, "multi-gpu"),
    ],
)
def test_auto_finds_the_profile(play: Play, machine: dict[str, Any], profile: str) -> None:
    play(**machine)
    assert detect_profile() == resolve().profile == profile
    assert resolve(device="cpu").profile.startswith("cpu"), "the row is that of the device that is asked for"


def with_old_rows(params: dict[str, Any]) -> dict[str, Any]:
    """Params as earlier versions had them: rows by memory instead of `gpu`; in each another micro-batch."""
    profiles = dict(params["profiles"])
    row = profiles.pop("gpu")
    rows = {name: {**row, "micro_batch_size": size} for size, name in enumerate(ROWS_BY_MEMORY, start=1)}
    return {**params, "profiles": {**profiles, **rows}}


@pytest.mark.parametrize(
    ("memory", "profile"),
    [(11.6e9, "gpu-6gb"), (12.6e9, "gpu-12gb"), (25.3e9, "gpu-24gb"), (76e9, "gpu-24gb"), (85e9, "gpu-80gb")],
)
def test_a_table_of_an_earlier_version_is_read_as_before(play: Play, memory: float, profile: str) -> None:
    play(cards=[(9, 0)], memory=memory)
    old = with_old_rows(read_params())
    for request in ("auto", profile):
        resolved = resolve_hardware(AUTO.model_copy(update={"profile": request}), old, 64, 256, 1e12)
        assert (resolved.profile, resolved.micro_batch_size) == (profile, old["profiles"][profile]["micro_batch_size"])
    with pytest.raises(ParameterError, match=r"hardware.profile='gpu': must be auto or a row of profiles: cpu, .*6gb$"):
        resolve_hardware(AUTO.model_copy(update={"profile": "gpu"}), old, 64, 256, 1e12)


def test_a_row_of_an_earlier_version_is_taken_as_gpu(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    notify_once.cache_clear()
    play(cards=[(9, 0)] * 2, memory=25e9)
    assert [resolve(profile="gpu-24gb").profile for _ in range(2)] == ["gpu", "gpu"]
    notice = "notice: hardware.profile=gpu-24gb: taken as gpu, which replaces it: set hardware.profile=gpu\n"
    assert capsys.readouterr().err == notice


@pytest.mark.parametrize(
    ("machine", "device", "expected"),
    [
        # What auto, fp32, bf16 and fp16 give; None: refused.
        ({"processor": "plain"}, "cpu", ["fp32", "fp32", "bf16", None]),
        ({"processor": "amx"}, "cpu", ["bf16", "fp32", "bf16", None]),
        ({"processor": "emulated"}, "cpu", ["fp32", "fp32", "bf16", None]),
        ({"cards": [(9, 0)]}, "cuda", ["bf16", "fp32", "bf16", "fp16"]),
        ({"cards": [(8, 0)]}, "cuda", ["bf16", "fp32", "bf16", "fp16"]),
        ({"cards": [(7, 5)]}, "cuda", ["fp16", "fp32", None, "fp16"]),
        ({"cards": [(8, 0), (7, 0)]}, "cuda", ["fp16", "fp32", None, "fp16"]),
        ({"cards": [(6, 1)]}, "cuda", ["fp32", "fp32", None, None]),
        ({"mps": True}, "mps", ["fp32", "fp32", None, None]),
    ],
)
def test_precision_by_device(play: Play, machine: dict[str, Any], device: str, expected: list[str | None]) -> None:
    play(**machine)
    given = []
    for request in ("auto", "fp32", "bf16", "fp16"):
        try:
            given.append(resolve(precision=request, device=device).precision)
        except ParameterError:
            given.append(None)
    assert given == expected


def test_a_reason_says_what_was_measured(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    play("amx")
    rates = "measured 1200.0 GFLOP/s in bf16, 190.0 in fp32, on one core"
    assert resolve(precision="auto").precision_reason == rates
    assert resolve(precision="bf16").precision_reason == f"as asked, {rates}"
    assert not capsys.readouterr().err


def test_slow_bfloat16_is_called_slow(play: Play) -> None:
    play("plain")
    resolved = resolve(profile="cpu-amx")
    assert resolved.precision == "bf16"
    assert "as asked, but slow here: measured 1.2 GFLOP/s in bf16, 120.0 in fp32" in resolved.precision_reason


def test_what_torchrun_has_started_counts(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN_VARIABLES:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    resolved = resolve(batch_size=12, processes=3)
    assert (resolved.processes, resolved.machines) == (6, 2)
    assert resolved.micro_batch_size == 2


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_run_at_the_precision(cpu: str, precision: str, dtype: torch.dtype) -> None:
    with resolve(precision=precision).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_fp16_is_what_autocast_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda device, dtype, enabled: (device, dtype, enabled))
    hardware = Hardware("gpu", "cuda", "fp16", 4, compile=False, compile_reason="a test", threads=1)
    assert hardware.autocast() == ("cuda", torch.float16, True)


def test_compiling_must_win_back_its_time(cpu: str) -> None:
    assert not resolve(flops=1e12).compile
    assert resolve(flops=1e12, compile=True).compile
    assert resolve(flops=1e16).compile == (cpu == "amx")
    assert not resolve(flops=1e16, precision="fp32").compile
    assert not resolve(flops=1e16, compile=False).compile


@pytest.mark.parametrize(
    ("machine", "compiler", "reason"),
    [({"processor": "amx"}, None, r"no C\+\+ compiler found \(g\+\+\)"), ({"cards": [(6, 1)]}, "g++", "Triton needs")],
)
def test_what_cannot_be_compiled_is_not(
    play: Play, monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any], compiler: str | None, reason: str
) -> None:
    play(**machine)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda _: compiler)
    hardware = resolve(flops=1e20)
    assert not hardware.compile
    assert reason.replace("\\", "") in hardware.compile_reason
    with pytest.raises(ParameterError, match=f"hardware.compile=true: {reason}.*; set hardware.compile=auto"):
        resolve(compile=True)


def test_the_micro_batch_is_at_most_the_batch(cpu: str) -> None:
    assert resolve(batch_size=4).micro_batch_size == 4
    assert resolve(batch_size=4096).micro_batch_size == 32  # 8,192 tokens
    assert resolve(batch_size=4096, micro_batch_size=7).micro_batch_size == 7
    assert resolve(batch_size=4, micro_batch_size=7).micro_batch_size == 4
    assert resolve(batch_size=8, processes=2).micro_batch_size == 4
    asked = [resolve(micro_batch_size=size).micro_batch_asked for size in (7, "auto", None)]
    assert asked == [True, False, False]


def test_explicit_keys_win_over_the_profile(cpu: str) -> None:
    row = resolve()
    assert (row.activation_checkpointing, row.processes, row.sharding) == (False, 1, "replicate")
    changed = resolve(activation_checkpointing=True, processes=2, sharding="full")
    assert (changed.activation_checkpointing, changed.processes, changed.sharding) == (True, 2, "full")


def test_each_card_gets_a_process(play: Play) -> None:
    play(cards=[(9, 0)] * 4, memory=85e9)
    assert resolve(batch_size=64).processes == 4
    assert resolve(batch_size=6).processes == 3, "the most among whom the batch can be divided"
    assert resolve(batch_size=64, processes=2).processes == 2
    assert resolve(batch_size=64, profile="gpu").processes == 1
    assert resolve(batch_size=64, device="cpu", processes="auto").processes == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"profile": "gpuu"}, r"hardware.profile='gpuu': must be auto or a row of profiles: cpu, "),
        ({"device": "cuda"}, r"hardware.device='cuda': this machine has none; set hardware.device=auto"),
        ({"profile": "gpu"}, r"this machine has none"),
        ({"profile": "mps"}, r"this machine has none"),
        ({"precision": "fp16"}, r"hardware.precision='fp16': not on device cpu; set hardware.precision=auto"),
    ],
)
def test_what_is_not_there_is_named(cpu: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        resolve(**change)


def test_what_the_cards_lack_is_named(play: Play) -> None:
    play(cards=[(7, 5), (7, 5)])
    with pytest.raises(ParameterError, match=r"='bf16': needs compute capability 8.0, this card has 7.5; set hardware"):
        resolve(precision="bf16")
    with pytest.raises(ParameterError, match=r"hardware.processes=3: device cuda takes 2; set hardware.processes=auto"):
        resolve(processes=3)


def test_this_machine_is_described() -> None:
    described = resolve().describe()
    assert described["device_name"]
    assert described["torch"] == torch.__version__
