"""The state of a run: its key, its lock, its lines, and what complete means."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmcore.errors import ArtifactError
from lmcore.train.run_state import KEY_LENGTH, open_run

IDENTITY = {"train": {"seed": 1}, "tokens": {"train": "ab"}}
# Holds the run until it reads a line.
HOLDER = """
import sys
from pathlib import Path
from lmcore.train.run_state import open_run
with open_run(Path(sys.argv[1]), {"train": {"seed": 1}, "tokens": {"train": "ab"}}) as run:
    run.log({"step": 1, "val_loss": 2.0})
    print("held", flush=True)
    sys.stdin.readline()
    run.complete({"seconds": 1.0})
"""
WAITER = """
import sys
from pathlib import Path
from lmcore.train.run_state import open_run
with open_run(Path(sys.argv[1]), {"train": {"seed": 1}, "tokens": {"train": "ab"}}) as run:
    print(run.records, flush=True)
    run.complete({"seconds": 99.0})
"""
ROOT = Path(__file__).parents[2]


@contextmanager
def start(program: str, runs: Path) -> Iterator[subprocess.Popen[str]]:
    """The program in a process of its own, which does not outlive the test."""
    command, pipe = [sys.executable, "-c", program, str(runs)], subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # In a session of its own because one is stopped, see projects.py.
    with subprocess.Popen(
        command, env=environment, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def release(holder: subprocess.Popen[str]) -> None:
    assert holder.stdin is not None
    holder.stdin.write("go\n")
    holder.stdin.flush()


def test_the_key_names_science_and_data(tmp_path: Path) -> None:
    with open_run(tmp_path, IDENTITY) as run:
        assert len(run.key) == KEY_LENGTH
        assert json.loads((run.folder / "identity.json").read_text()) == IDENTITY
        key = run.key
    with open_run(tmp_path, dict(reversed(IDENTITY.items()))) as same:
        assert same.key == key
    with open_run(tmp_path, {**IDENTITY, "train": {"seed": 2}}) as other:
        assert other.key != key


def test_a_step_is_logged_once(tmp_path: Path) -> None:
    with open_run(tmp_path, IDENTITY) as run:
        for step, loss in ((1, 3.0), (2, 2.0), (2, 9.0), (1, 9.0), (3, 1.0)):
            run.log({"step": step, "loss": loss}, tokens_per_second=5.0)
        assert run.records == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 1.0}]
    with open_run(tmp_path, IDENTITY) as again:
        assert again.records == run.records
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert all(line["machine"].keys() == {"tokens_per_second", "time"} for line in lines)


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    with open_run(tmp_path, IDENTITY) as run:
        run.log({"step": 1})
        with run.metrics_path.open("a") as file:
            file.write('{"step": 2, "lo')
    with open_run(tmp_path, IDENTITY) as again:
        assert again.records == [{"step": 1}]
        again.log({"step": 2})
    assert [json.loads(line)["step"] for line in run.metrics_path.read_text().splitlines()] == [1, 2]


def test_a_complete_run_starts_afresh_and_an_incomplete_one_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(tmp_path, IDENTITY) as run:
        run.log({"step": 1})
    with open_run(tmp_path, IDENTITY) as run:
        assert run.records == [{"step": 1}]
        run.complete({"seconds": 1.0})
    with open_run(tmp_path, IDENTITY) as run:
        assert run.records == []
    assert "complete and was asked for again" in capsys.readouterr().out
    assert (tmp_path / f"{run.key}.previous" / "metrics.jsonl").exists()


def test_the_second_of_two_waits_and_uses_the_result(tmp_path: Path) -> None:
    with start(HOLDER, tmp_path) as holder:
        assert read_line(holder) == "held"
        with start(WAITER, tmp_path) as waiter:
            assert "waiting" in read_line(waiter)
            release(holder)
            assert read_line(waiter) == str([{"step": 1, "val_loss": 2.0}])
            assert waiter.wait() == 0
        assert holder.wait() == 0
    (summary,) = tmp_path.glob("*/summary.json")
    assert json.loads(summary.read_text()) == {"seconds": 1.0}
    assert not list(tmp_path.glob("*.previous"))


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    with start(HOLDER, tmp_path) as holder:
        assert read_line(holder) == "held"
        holder.kill()
        holder.wait()
        with open_run(tmp_path, IDENTITY) as run:
            assert run.records == [{"step": 1, "val_loss": 2.0}]


def test_the_lock_of_a_stopped_process_is_not_free(tmp_path: Path) -> None:
    with start(HOLDER, tmp_path) as holder:
        assert read_line(holder) == "held"
        holder.send_signal(signal.SIGSTOP)
        os.waitpid(holder.pid, os.WUNTRACED)
        release(holder)
        with start(WAITER, tmp_path) as waiter:
            assert "waiting" in read_line(waiter)
            time.sleep(0.5)
            (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
            assert waiter.poll() is None
            assert not (folder / "summary.json").exists()
            holder.send_signal(signal.SIGCONT)
            assert read_line(waiter) == str([{"step": 1, "val_loss": 2.0}])
            assert (waiter.wait(), holder.wait()) == (0, 0)
        assert (folder / "summary.json").exists()


def test_a_clock_that_is_put_back_breaks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([2_000_000, 1_000_000, 3_000_000])
    monkeypatch.setattr(time, "time_ns", lambda: next(times))
    with open_run(tmp_path, IDENTITY) as run:
        for step in (1, 2, 3):
            run.log({"step": step})
    with open_run(tmp_path, IDENTITY) as again:
        assert [record["step"] for record in again.records] == [1, 2, 3]
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert [line["machine"]["time"] for line in lines] == [2, 1, 3]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    with open_run(tmp_path, IDENTITY) as run:
        run.log({"step": 1})
        run.metrics_path.write_text("{step\n" + run.metrics_path.read_text())
    with pytest.raises(ArtifactError, match=r"metrics.jsonl is damaged \(.*\): remove .* to start the run afresh"):
        open_run(tmp_path, IDENTITY).__enter__()
