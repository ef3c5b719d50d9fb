"""The tracking section, several trackers at once, and the rows that all of them are fed from."""

import json
import shutil
from pathlib import Path

import pytest
from tracked import SETTINGS, log, make_params, make_run

from lmcore.errors import ParameterError
from lmcore.tracking.session import plan_tracking, track_run
from lmcore.tracking.spool import BYTES_AT_ONCE, Row, cut_torn_line, find_row, read_rows
from lmcore.tracking.store import read_runs

pytestmark = pytest.mark.filterwarnings("ignore")

GOOD = {"backends": ["mlflow"], "experiment": "lmcore", "system_metrics_seconds": 10}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backends": ["mlfow"]}, r"tracking\.backends\[0\]='mlfow': must be .*, did you mean mlflow\?"),
        ({"backends": "mlflow"}, r"tracking\.backends='mlflow': must be a list"),
        ({"backends": ["mlflow", "mlflow"]}, r"tracking\.backends=.*: each is named once"),
        ({"experiment": ""}, r"tracking\.experiment='': must be text of at least one character"),
        ({"system_metrics_seconds": 0.1}, r"tracking\.system_metrics_seconds=0\.1: must be greater than or equal to 1"),
        ({"backend": []}, r"tracking\.backend=\[\]: unknown key, did you mean tracking\.backends\?"),
    ],
)
def test_a_wrong_value_is_refused_before_any_work(values: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        plan_tracking({"tracking": {**GOOD, **values}})


def test_a_params_file_from_before(project: Path) -> None:
    with pytest.raises(ParameterError, match="has no section tracking"):
        plan_tracking({"train": {}})


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmcore.tracking.params.find_spec", {}.get)
    remedy = r"tracking\.backends: wandb is not installed: pip install -e '\.\[wandb\]', or leave it out"
    with pytest.raises(ParameterError, match=remedy):
        plan_tracking({"tracking": {**GOOD, "backends": ["wandb"]}})


def test_no_tracker_leaves_nothing_behind(project: Path) -> None:
    run = make_run(project)
    with plan_tracking({**SETTINGS, "tracking": {**GOOD, "backends": None}})(run):
        log(run, 1)
    assert {path.name for path in run.folder.iterdir()} == {"metrics.jsonl", "description.json"}
    assert read_runs() == []


def test_one_tracker_that_fails_is_not_the_others_business(
    project: Path, empty_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(empty_store, project / "mlflow.db")
    run = make_run(project)
    (run.folder / "tensorboard").write_text("a file where a folder should be")
    with track_run(run, SETTINGS, make_params("tensorboard", "mlflow")):
        log(run, 1)
    assert "TensorBoard in" in capsys.readouterr().err
    (found,) = read_runs()
    assert (found.status, found.metrics["train_loss"]) == ("finished", 1.0)


def test_the_experiment_is_the_one_that_is_named(project: Path, empty_store: Path) -> None:
    shutil.copyfile(empty_store, project / "mlflow.db")
    run = make_run(project)
    with plan_tracking({**SETTINGS, "tracking": {**GOOD, "experiment": "ours", "system_metrics_seconds": None}})(run):
        log(run, 1)
    assert [found.experiment for found in read_runs()] == ["ours"]


def test_rows_are_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path, 0) == ([], 0)
    whole = json.dumps({"step": 3, "loss": 1.5, "machine": {"time": 7, "speed": 2.0}}) + "\n"
    path.write_text(whole + whole[:10])
    assert read_rows(path, 0) == ([Row(3, 7, {"loss": 1.5, "speed": 2.0})], len(whole))
    assert read_rows(path, len(whole)) == ([], len(whole))
    assert find_row(path, 3) == find_row(path) == Row(3, 7, {"loss": 1.5, "speed": 2.0})
    assert find_row(path, 4) is None
    assert cut_torn_line(path) == 4
    assert path.read_text() == whole


def test_a_long_backlog_comes_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"step": 1, "x" * 1000: 1.0, "machine": {"time": 7}}) + "\n"
    count = 2 * BYTES_AT_ONCE // len(line)
    path.write_text(line * count)
    position, lengths = 0, []
    while True:
        rows, position = read_rows(path, position)
        if not rows:
            break
        lengths.append(len(rows))
    assert sum(lengths) == count
    assert len(lengths) >= 2
    assert position == path.stat().st_size


def test_a_line_of_more_than_a_part(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"step": 1, "x" * (2 * BYTES_AT_ONCE): 1.0, "machine": {"time": 7}}) + "\n"
    path.write_text(line)
    rows, position = read_rows(path, 0)
    assert (len(rows), position) == (1, len(line))
