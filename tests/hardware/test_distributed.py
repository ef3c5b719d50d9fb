"""Real processes over gloo: they meet, agree, leave together, and a mistake stays one line."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from imports import ROOT

from lmcore.errors import ParameterError
from lmcore.hardware.distributed import World, is_worker, join_world, launch, split_batch
from lmcore.hardware.signals import SAME_SIGNAL_SECONDS

SECONDS = 240  # a limit for a busy machine
PYTHON = (sys.executable, "-W", "error", "-m")
LAUNCH = (*PYTHON, "world_program")
TORCHRUN = (*PYTHON, "torch.distributed.run")
TORCHRUN_HERE = (*TORCHRUN, "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2", "-m", "world_program")


Process = subprocess.Popen[str]
Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Runs a behaviour of tests/support/world_program.py in `tmp_path`; what is left at the end is killed."""
    started: list[Process] = []
    litter = {"TMPDIR": str(tmp_path_factory.mktemp("litter"))}  # of a torchrun that is killed

    def start_one(behaviour: str, *command: str) -> Process:
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        environment |= {
            **litter,
            "BEHAVIOUR": behaviour,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}",
            "DVC_STAGE": "train",
        }
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command or LAUNCH, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        with process:  # closes the pipes, which a stray worker may hold, and waits
            process.kill()


def finish(process: Process) -> tuple[int, str]:
    """The exit status and standard error, without torch's warning that a host's own name leads nowhere (offline)."""
    _, errors = process.communicate(timeout=SECONDS)
    return process.returncode, "".join(line for line in errors.splitlines(keepends=True) if "socket.cpp" not in line)


def read_pids(process: Process) -> list[int]:
    """Of the two workers, which print them once they are at work."""
    assert process.stdout is not None
    return [int(process.stdout.readline()) for _ in range(2)]


def test_alone_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert launch(1, "nothing") is None
    with join_world("cpu") as world:
        assert world == World(rank=0, size=1, local_rank=0)
        assert world.is_main
        assert world.all_reduce(torch.ones(2)).tolist() == [1.0, 1.0]
        assert (world.any(True), world.any(False), world.max(2), world.broadcast(3)) == (True, False, 2, 3)
        world.barrier()
        assert split_batch(5, world) == slice(0, 5)


def test_a_batch_is_shared_out_in_equal_parts() -> None:
    parts = [split_batch(12, World(rank, 4)) for rank in range(4)]
    assert [place for part in parts for place in range(12)[part]] == list(range(12))
    with pytest.raises(ParameterError, match=r"train.batch_size=10: must be divisible by the 4 .*; run 2 of them"):
        split_batch(10, World(0, 4))


def test_half_a_torchrun_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "host")
    with pytest.raises(ParameterError, match=r"RANK=1 is set.*not WORLD_SIZE, .*, MASTER_PORT: start the"):
        is_worker()


@pytest.mark.slow
def test_two_processes_meet(tmp_path: Path, start: Start) -> None:
    assert finish(start("meet")) == (0, "")
    same = "[2.0, 1.0] [False, True, True, 4] {'step': 7, 'from': 'é'}"
    assert (tmp_path / "met-0").read_text() == f"0 of 2 (0): {same} 0:3"
    assert (tmp_path / "met-1").read_text() == f"1 of 2 (1): {same} 3:6"


@pytest.mark.parametrize(
    "behaviour",
    [
        "make_a_mistake",
        pytest.param("make_a_mistake_on_the_way", marks=pytest.mark.slow),
        pytest.param("make_one_mistake_together", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_is_one_line(behaviour: str, start: Start) -> None:
    assert finish(start(behaviour)) == (1, "error: the text is empty: give it some\n")


@pytest.mark.slow
def test_the_others_end_when_one_is_killed(start: Start) -> None:
    status, errors = finish(start("be_killed"))
    assert (status, errors.count("\n")) == (1, 1), errors
    assert errors.startswith("error: one of the 2 processes was killed, perhaps for want of memory: run the same")


@pytest.mark.slow
def test_one_that_is_busy_is_ended_when_the_other_is_killed(start: Start) -> None:
    status, errors = finish(start("be_killed_beside_a_busy_one"))
    assert (status, errors.count("\n")) == (1, 1), errors
    assert errors.startswith("error: process 2 of 2 (SIGKILL) was killed, perhaps for want of memory: run the same")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_reaches_all_and_they_save_and_leave(number: signal.Signals, tmp_path: Path, start: Start) -> None:
    process = start("leave_when_asked")
    read_pids(process)
    process.send_signal(number)
    assert finish(process) == (128 + number, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved-0", "saved-1"]


@pytest.mark.slow
def test_a_signal_to_one_worker_reaches_all(tmp_path: Path, start: Start) -> None:
    process = start("leave_when_asked")
    os.kill(read_pids(process)[1], signal.SIGTERM)
    assert finish(process) == (128 + signal.SIGTERM, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved-0", "saved-1"]


@pytest.mark.slow
def test_nohup_protects_and_one_event_counts_once(tmp_path: Path, start: Start) -> None:
    process = start("leave_when_asked", "nohup", *LAUNCH)
    read_pids(process)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)  # as part of the same event
    assert finish(process)[0] in (128 + signal.SIGTERM, 128 + signal.SIGINT)  # and not 128 + SIGHUP
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved-0", "saved-1"]


@pytest.mark.slow
def test_a_second_signal_kills(start: Start) -> None:
    process = start("ignore_everything")
    read_pids(process)
    process.send_signal(signal.SIGTERM)
    time.sleep(SAME_SIGNAL_SECONDS + 1)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 128 + signal.SIGTERM


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="pidfd is Linux")
@pytest.mark.parametrize("command", [LAUNCH, TORCHRUN_HERE])
def test_workers_save_and_leave_when_the_launcher_is_killed(
    command: tuple[str, ...], tmp_path: Path, start: Start
) -> None:
    process = start("leave_when_asked", *command)
    watches = [os.pidfd_open(pid) for pid in read_pids(process)]
    process.kill()
    for watch in watches:
        assert select.select([watch], [], [], SECONDS)[0], "a worker lives on"
        os.close(watch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved-0", "saved-1"]


@pytest.mark.slow
def test_two_machines_meet(tmp_path: Path, start: Start) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    command = (
        *TORCHRUN,
        *("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"),
        *("--rdzv-endpoint", endpoint, "--local-addr", "127.0.0.1", "-m", "world_program"),
    )
    for process in [start("meet", *command), start("meet", *command)]:
        status, errors = finish(process)
        assert status == 0, errors
    same = "[2.0, 1.0] [False, True, True, 4] {'step': 7, 'from': 'é'}"
    assert (tmp_path / "met-0").read_text() == f"0 of 2 (0): {same} 0:3"
    assert (tmp_path / "met-1").read_text() == f"1 of 2 (0): {same} 3:6"
