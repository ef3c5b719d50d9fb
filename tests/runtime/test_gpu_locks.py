"""Cards are claimed by names: each by one process at a time, several all together, and freed however a process ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from imports import ROOT

from lmcore.errors import ArtifactError
from lmcore.hardware import resolve as hardware
from lmcore.hardware.distributed import _take_gpu
from lmcore.hardware.measure import list_gpus
from lmcore.hardware.params import HardwareParams
from lmcore.hardware.resolve import claim_device, claim_devices
from lmcore.params import parse_section, read_params
from lmcore.runtime import gpu_locks as cards

PARAMS = read_params(ROOT / "params.yaml")
# Takes cards by name, says which places it has, and keeps them until its standard input ends.
CLAIM = """
import sys
from pathlib import Path
from lmcore.runtime.gpu_locks import wait_for_gpus
folder, count, *names = sys.argv[1:]
print(wait_for_gpus(names, int(count), Path(folder)), flush=True)
sys.stdin.read()
"""


class Claimant:
    def __init__(self, folder: Path, count: int, *names: str) -> None:
        command = [sys.executable, "-c", CLAIM, str(folder), str(count), *names]
        pipe = subprocess.PIPE
        environment = {**os.environ, "DVC_ROOT": "/checkout", "DVC_STAGE": "train", "DVC_EXP_NAME": "hazy-dawn"}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, by: int | None = None) -> None:
        if by is not None:
            self.process.send_signal(by)
        self.process.communicate()


@pytest.fixture
def claimants() -> Iterator[list[Claimant]]:
    started: list[Claimant] = []
    yield started
    for claimant in started:
        claimant.end(signal.SIGKILL)


def test_each_takes_a_free_one_and_the_third_waits(tmp_path: Path, claimants: list[Claimant]) -> None:
    for place in (0, 1):
        claimants.append(Claimant(tmp_path, 1, "GPU-a", "GPU-b"))
        assert claimants[-1].line() == f"[{place}]"
    claimants.append(third := Claimant(tmp_path, 1, "GPU-a", "GPU-b"))
    told = [
        f"{name} is held by process {each.process.pid} (train of hazy-dawn in /checkout)"
        for name, each in zip(("GPU-a", "GPU-b"), claimants, strict=False)
    ]
    assert third.line() == f"waiting for 1 of 2 cards: {told[0]}; {told[1]}"
    claimants[1].end(signal.SIGKILL)
    assert third.line() == "[1]"


def test_who_sees_one_card_takes_that(tmp_path: Path, claimants: list[Claimant]) -> None:
    claimants.append(first := Claimant(tmp_path, 1, "GPU-b"))
    assert first.line() == "[0]"
    claimants.append(second := Claimant(tmp_path, 1, "GPU-a", "GPU-b"))
    assert second.line() == "[0]"
    claimants.append(third := Claimant(tmp_path, 1, "GPU-b"))
    assert third.line().startswith(f"waiting for 1 of 1 card: GPU-b is held by process {first.process.pid} ")
    first.end()
    assert third.line() == "[0]"


def test_several_are_taken_together_or_not_at_all(tmp_path: Path, claimants: list[Claimant]) -> None:
    claimants.append(first := Claimant(tmp_path, 1, "GPU-a", "GPU-b"))
    assert first.line() == "[0]"
    claimants.append(both := Claimant(tmp_path, 2, "GPU-a", "GPU-b"))
    assert both.line().startswith("waiting for 2 of 2 cards: GPU-a is held by ")
    claimants.append(other := Claimant(tmp_path, 1, "GPU-a", "GPU-b"))
    assert other.line() == "[1]"  # which the one that waits for both has not kept
    first.end(), other.end()
    while (line := both.line()).startswith("waiting for"):  # perhaps between the two ends
        pass
    assert line == "[0, 1]"


def test_many_at_once_come_to_an_end(tmp_path: Path, claimants: list[Claimant]) -> None:
    """Some want two cards, in different orders: each gets its own, and none waits for ever."""
    orders = [(2, "a", "b", "c"), (2, "c", "b", "a"), (1, "b"), (2, "b", "a"), (3, "a", "c", "b"), (1, "c", "a")]
    claimants += [Claimant(tmp_path, *order) for order in orders]
    for claimant in claimants:
        assert claimant.process.stdin is not None
        claimant.process.stdin.close()  # each ends as soon as it has had its cards
        claimant.process.stdin = None
    assert [claimant.process.wait(timeout=60) for claimant in claimants] == [0] * len(orders)


def test_a_card_is_held_until_the_last_worker_is_gone(tmp_path: Path, claimants: list[Claimant]) -> None:
    """A launcher passes its locks on: when it is killed, its workers still save on their cards."""
    program = CLAIM.replace("sys.stdin.read()", "") + (
        "import subprocess; from lmcore.runtime.gpu_locks import held_locks\n"
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], pass_fds=held_locks())\n"
        "print(worker.pid, flush=True); worker.wait()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path), "1", "GPU-a"]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "[0]\n"
    worker = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    claimants.append(following := Claimant(tmp_path, 1, "GPU-a"))
    assert following.line().startswith("waiting for 1 of 1 card: GPU-a is held by process ")
    os.kill(worker, signal.SIGKILL)
    assert following.line() == "[0]"


def test_the_locks_are_in_a_folder_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = cards.lock_folder()
    assert cards.lock_folder() == folder == tmp_path / f"lmcore-cards-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="belongs to somebody else: set TMPDIR"):
        cards.lock_folder()


class TestStages:
    """What of CUDA is touched is replaced: which cards there are, and which one torch computes on."""

    @pytest.fixture(autouse=True)
    def three_cards(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
        current: list[int] = []
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr(hardware, "list_gpus", lambda: ["a", "b", "c"])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        for name in (cards.CARDS, "RANK"):
            monkeypatch.setenv(name, "")  # put back, or away, at the end
            monkeypatch.delenv(name)
        yield current
        while cards._locks:
            os.close(cards._locks.pop())

    def claim(self, batch_size: int | None = None, **values: object) -> str:
        request = {**PARAMS["hardware"], "profile": "multi-gpu", **values}
        section = parse_section(HardwareParams, "hardware", request)
        return claim_device(section, PARAMS) if batch_size is None else claim_devices(section, PARAMS, batch_size)[0]

    def test_a_stage_that_does_not_train_takes_one(self, three_cards: list[int]) -> None:
        assert self.claim(processes=2) == "cuda"
        assert (cards.claimed_gpus(), three_cards) == ([0], [0])

    def test_a_training_takes_one_for_each_process(self, claimants: list[Claimant]) -> None:
        claimants.append(Claimant(cards.lock_folder(), 1, "a"))
        claimants[0].line()
        self.claim(batch_size=4, processes=2)
        assert cards.claimed_gpus() == [1, 2]
        held = cards.held_locks()
        self.claim(batch_size=4, processes=2)  # a second time, and in the processes that it starts: nothing is claimed
        assert cards.held_locks() == held

    def test_nothing_is_claimed_on_a_cpu(self, three_cards: list[int]) -> None:
        assert self.claim(batch_size=4, device="cpu", processes=2) == "cpu"
        assert not three_cards
        assert not cards.held_locks()

    @pytest.mark.parametrize(("rank", "claimed"), [("0", [0, 1]), ("1", [])])
    def test_of_torchruns_processes_the_first_claims_for_all(
        self, monkeypatch: pytest.MonkeyPatch, three_cards: list[int], rank: str, claimed: list[int]
    ) -> None:
        values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        for name, value in {**values, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
            monkeypatch.setenv(name, value)
        self.claim(batch_size=4)
        assert cards.claimed_gpus() == claimed
        _take_gpu(int(rank))
        assert three_cards[-1] == int(rank)


@pytest.mark.gpu
def test_cards_have_names_that_do_not_change() -> None:
    names = list_gpus()
    assert len(set(names)) == torch.cuda.device_count() > 0
    command = [sys.executable, "-c", "from lmcore.hardware.measure import list_gpus; print(list_gpus())"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(torch.cuda.device_count() - 1)}
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.strip() == str(names[-1:])
