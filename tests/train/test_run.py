"""The state of a run: its key, its lock, its lines, and what complete means."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lmcore.train.run import KEY_LENGTH, open_run

IDENTITY = {"train": {"seed": 1}, "tokens": {"train": "ab"}}
HOLDER = """
import sys, time
from pathlib import Path
from lmcore.train.run import open_run
with open_run(Path(sys.argv[1]), {"train": {"seed": 1}, "tokens": {"train": "ab"}}) as run:
    run.log({"step": 1, "val_loss": 2.0})
    print("held", flush=True)
    time.sleep(2.0)
    run.complete({"seconds": 1.0})
"""


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


def test_the_second_of_two_waits_and_uses_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with open_run(tmp_path, IDENTITY) as run:
        assert run.records == [{"step": 1, "val_loss": 2.0}]
        run.complete({"seconds": 99.0})
        assert json.loads((run.folder / "summary.json").read_text()) == {"seconds": 1.0}
    assert "waiting" in capsys.readouterr().out
    assert holder.wait() == 0
    holder.stdout.close()


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with open_run(tmp_path, IDENTITY) as run:
        assert run.records == [{"step": 1, "val_loss": 2.0}]
