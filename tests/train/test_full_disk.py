"""A full disk: the run goes on, nothing good is lost, and when there is space again everything is written."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from lmcore.files import write_file
from lmcore.train import checkpoint
from lmcore.train.checkpoint import Checkpoints
from lmcore.train.run_state import Run, open_run

ROOT = Path(__file__).parents[2]
FULL = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]
IDENTITY = {"train": {"seed": 1}}


class Disk:
    """Refuses, with `number`, to write what makes a file whose name ends in `ending`; None lets everything pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number: int | None = None
        self.ending = ""
        for module in ("lmcore.train.checkpoint", "lmcore.files"):
            monkeypatch.setattr(f"{module}.write_file", self.write_file)

    @contextmanager
    def write_file(self, path: Path) -> Iterator[BinaryIO]:
        with write_file(path) as file:
            if self.number is not None and path.name.endswith(self.ending):
                file.write(b"torn")
                file.flush()
                raise OSError(self.number, os.strerror(self.number))
            yield file


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def make_state(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((1000,), float(step))}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("number", FULL)
@pytest.mark.parametrize("ending", [".safetensors", ".json"])
def test_a_save_that_finds_the_disk_full_changes_nothing_and_the_next_one_works(
    tmp_path: Path, disk: Disk, number: int, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.finish()
        before = contents(tmp_path)
        disk.number, disk.ending = number, ending
        checkpoints.save(2, make_state(2))
        checkpoints.finish()
        (warning,) = capsys.readouterr().err.splitlines()
        assert f"{tmp_path / 'step-00000002.safetensors'} was not written ({os.strerror(number)})" in warning
        assert "the last good checkpoint is kept and the next one will be tried" in warning
        assert contents(tmp_path) == before
        disk.number = None
        checkpoints.save(3, make_state(3))
        restored = checkpoints.restore()
    assert restored is not None
    assert restored[0] == 3
    assert restored[1]["weight"].equal(make_state(3)["weight"])
    assert sorted(contents(tmp_path)) == ["step-00000003.json", "step-00000003.safetensors"]
    assert capsys.readouterr().err == ""


def test_another_failure_of_the_writer_is_raised_in_the_training_thread_once(tmp_path: Path, disk: Disk) -> None:
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for meet in (checkpoints.finish, lambda: checkpoints.save(9, make_state(9)), checkpoints.restore):
            disk.number = errno.EROFS
            checkpoints.save(1, make_state(1))
            with pytest.raises(OSError, match="Read-only"):
                meet()
            disk.number = None
            checkpoints.save(2, make_state(2))
            checkpoints.finish()
    disk.number = errno.EROFS
    with pytest.raises(OSError, match="Read-only"), Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(3, make_state(3))


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from lmcore.train.checkpoint import Checkpoints
from lmcore.train.run_state import open_run

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def make_state(step):
    return {"weight": torch.full((100_000,), float(step))}

with open_run(Path(sys.argv[1]), {}) as run, Checkpoints(run.folder / "checkpoints", keep=1) as checkpoints:
    run.log({"step": 1})
    checkpoints.save(1, make_state(1))
    checkpoints.finish()
    limit(run.metrics_path.stat().st_size + 10)
    for step in (2, 3):
        run.log({"step": step})
        assert not run.flush()
        checkpoints.save(step, make_state(step))
        checkpoints.finish()
        print(step, run.metrics_path.read_text().count("step"), checkpoints.restore()[0])
    limit(resource.RLIM_INFINITY)
    assert run.flush()
    checkpoints.save(4, make_state(4))
    checkpoints.finish()
    print(4, run.metrics_path.read_text().count("step"), checkpoints.restore()[0])
print(*sorted(path.name for path in checkpoints.folder.iterdir()))
"""


def test_with_a_real_limit_of_the_file_size(tmp_path: Path) -> None:
    output = run_program([sys.executable, "-c", LIMITED, str(tmp_path)])
    assert output.stdout.splitlines() == ["2 1 1", "3 1 1", "4 3 4", "step-00000004.json step-00000004.safetensors"]
    assert output.stderr.count("warning") == 3, output.stderr  # metrics.jsonl once, each checkpoint


# On a file system of 4 MB, fill it, and make room again.
FILLED = """
import sys
from pathlib import Path
import torch
from lmcore.train.checkpoint import Checkpoints
from lmcore.train.run_state import open_run

def make_state(step):
    return {"weight": torch.full((250_000,), float(step))}

place = Path(sys.argv[1])
with open_run(place / "runs", {}) as run, Checkpoints(run.folder / "checkpoints", keep=1) as checkpoints:
    run.log({"step": 1})
    checkpoints.save(1, make_state(1))
    checkpoints.finish()
    with (place / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            print(error.errno)
    for step in range(2, 200):
        run.log({"step": step, "text": "x" * 50})
    checkpoints.save(2, make_state(2))
    checkpoints.finish()
    text = run.metrics_path.read_text()
    print(run.flush(), text.endswith("\\n"), text.count("step") < 150, checkpoints.restore()[0])
    (place / "filler").unlink()
    run.log({"step": 200})
    checkpoints.save(200, make_state(200))
    checkpoints.finish()
    print(run.flush(), checkpoints.restore()[0])
with open_run(place / "runs", {}) as run:
    print([record["step"] for record in run.records] == list(range(1, 201)))
"""


def test_with_a_real_full_file_system(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=4m tmpfs {tmp_path}"
    private = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*private, mount], capture_output=True, check=False).returncode
    ):
        pytest.skip("file systems cannot be mounted here")
    output = run_program([*private, f'{mount} && exec "$@"', "sh", sys.executable, "-c", FILLED, str(tmp_path)])
    assert output.stdout.splitlines() == [str(errno.ENOSPC), "False True True 1", "True 200", "True"]
    assert output.stderr.count("No space left on device") == 2, output.stderr
    assert not list(tmp_path.iterdir()), "it was not mounted"


def run_program(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`capsys`, because pytest otherwise has our warnings written to a file, which is limited as well."""
    with open_run(tmp_path, IDENTITY) as opened:
        yield opened


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def steps_on_disk(run: Run) -> list[int]:
    """Read by another opening of the run, which would not bear a torn line in the middle."""
    return [record["step"] for record in Run(run.folder).records]


@pytest.mark.parametrize("spare", [0, 1, 30, 70])
def test_lines_wait_in_memory_and_come_in_order(run: Run, spare: int, capsys: pytest.CaptureFixture[str]) -> None:
    run.log({"step": 1})
    whole = run.metrics_path.read_bytes()
    with limited(len(whole) + spare):
        for step in (2, 3, 3, 2, 4):
            run.log({"step": step, "text": "x" * 100}, tokens_per_second=1.0)
            assert run.metrics_path.read_bytes() == whole, "a torn line"
            assert not run.flush()
        assert run.records[-1]["step"] == 4
        (warning,) = capsys.readouterr().err.splitlines()
        assert f"{run.metrics_path} cannot grow (File too large): training goes on" in warning
    run.log({"step": 5})
    assert run.flush()
    assert steps_on_disk(run) == [1, 2, 3, 4, 5]
    assert capsys.readouterr().err == ""
    with limited(run.metrics_path.stat().st_size):
        run.log({"step": 6})
        assert "cannot grow" in capsys.readouterr().err, "a second time that it is full is said again"
    assert run.flush()
    assert steps_on_disk(run) == [1, 2, 3, 4, 5, 6]


def test_a_line_that_is_written_but_not_on_disk_is_written_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems find out in fsync that there is no room."""

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        run.log({"step": 1})
        assert run.metrics_path.read_bytes() == b""
    run.log({"step": 2})
    assert steps_on_disk(run) == [1, 2]


def test_a_run_is_not_complete_without_its_lines(run: Run) -> None:
    with limited(0):
        run.log({"step": 1})
        with pytest.raises(OSError, match=f"File too large: '{run.metrics_path}'"):
            run.complete({"seconds": 1.0})
    assert not (run.folder / "summary.json").exists()
    run.complete({"seconds": 1.0})
    assert (run.folder / "summary.json").exists()
    assert steps_on_disk(run) == [1]


def test_another_failure_to_log_is_raised(run: Run) -> None:
    run.metrics_path.mkdir()
    with pytest.raises(IsADirectoryError):
        run.log({"step": 1})


def test_the_refusals_are_those_of_a_full_disk() -> None:
    assert sorted(FULL) == sorted(checkpoint.FULL_DISK)
