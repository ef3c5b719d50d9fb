"""File locks: one holder at a time, also while the file is removed and made again, and none after a kill."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lmcore.runtime.locks import hold, is_locked, lock, try_hold

HOLDER = """
from pathlib import Path
from lmcore.runtime.locks import hold
with hold(Path({!r})):
    print("held", flush=True)
    input()
"""


def test_one_at_a_time(tmp_path: Path) -> None:
    """The file is removed and made again 200 times, and two that hold it at once would read the same number."""
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count(_: int) -> None:
        with hold(tmp_path / "lock"):
            value = int(counter.read_text())
            counter.write_text(str(value + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(200)))
    assert counter.read_text() == "200"
    assert not (tmp_path / "lock").exists()


def test_a_lock_that_is_held_is_seen_and_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    with hold(path) as waited:
        assert not waited
        assert is_locked(path)
        with try_hold(path) as held:
            assert not held
        assert is_locked(path)
    assert not path.exists()
    with try_hold(path) as held:
        assert held
        assert is_locked(path)
    assert not path.exists()


def test_two_that_look_do_not_see_each_other(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with path.open() as file:
        assert lock(file, shared=True)
        assert not is_locked(path)
        with path.open() as other:
            assert not lock(other)


def test_a_killed_holder_frees_the_lock_and_who_waited_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER.format(str(path))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(path)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(_hold, path)
            while "somebody" not in capsys.readouterr().out:
                assert not waiting.done()
                time.sleep(0.01)
            holder.kill()
            assert waiting.result(timeout=60)
    assert not path.exists()


def _hold(path: Path) -> bool:
    with hold(path, "somebody else holds it") as waited:
        return waited
