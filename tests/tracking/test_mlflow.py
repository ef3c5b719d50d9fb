"""The tracker against a real SQLite store, a server that is not there, and a killed and resumed run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmcore.tracking import session
from lmcore.tracking.results import log_results
from lmcore.tracking.run import TrackedRun, describe_code
from lmcore.tracking.session import track_run
from lmcore.tracking.store import connect, flatten, read_runs

SETTINGS = {"train": {"seed": 1}, "encode": {"shard_tokens": 9}, "profiles": {"cpu": {}}}

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and its libraries' own


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "SHIP_SECONDS", 0.05)
    (tmp_path / "runs" / "key").mkdir(parents=True)
    (tmp_path / "models" / "gpt").mkdir(parents=True)
    (tmp_path / "models" / "gpt" / "config.json").write_text("{}")
    return tmp_path


def make_run(project: Path, **hardware: object) -> TrackedRun:
    return TrackedRun(
        folder=project / "runs" / "key",
        params={"train": {"seed": 1, "learning_rate": 0.001}, "model": {"n_layers": 2}},
        hardware={"device": "cpu", **hardware},
        datasets={"tokens": {"train": "ab" * 32}, "tokenizer": "cd" * 32},
        artifact=project / "models" / "gpt",
    )


def log(project: Path, *steps: int) -> None:
    with (project / "runs" / "key" / "metrics.jsonl").open("a") as file:
        for step in steps:
            record = {
                "step": step,
                "train_loss": 1.0 / step,
                "machine": {"time": 1_700_000_000_000 + step, "speed": 9.5},
            }
            file.write(json.dumps(record) + "\n")


def only_run_id(project: Path) -> str:
    run_id: str = json.loads((project / "runs" / "key" / "mlflow.json").read_text())["run_id"]
    return run_id


def test_a_training_is_one_run_with_everything(project: Path) -> None:
    with track_run(make_run(project), SETTINGS):
        log(project, 1, 2, 3)
    client = connect()
    run = client.get_run(only_run_id(project))
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.seed": "1", "train.learning_rate": "0.001", "model.n_layers": "2"}
    assert run.data.tags["lmcore.run_key"] == "key"
    assert run.data.tags["hardware.device"] == "cpu"
    assert {name for name in run.data.tags if name.startswith("params.")} == {"params.encode.shard_tokens"}
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(point.step, point.value, point.timestamp) for point in history] == [
        (step, 1.0 / step, 1_700_000_000_000 + step) for step in (1, 2, 3)
    ]
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"tokens.train", "tokenizer"}
    assert [file.path for file in client.list_artifacts(run.info.run_id, "model")] == ["model/config.json"]
    assert (project / "mlflow.db").exists()


def test_a_resumed_training_is_the_same_run_without_doubled_points(project: Path) -> None:
    with pytest.raises(SystemExit), track_run(make_run(project), SETTINGS):
        log(project, 1, 2)
        raise SystemExit(143)
    run_id = only_run_id(project)
    assert connect().get_run(run_id).info.status == "KILLED"
    # The worst kill: points were sent, but not noted as sent.
    (project / "runs" / "key" / "mlflow.json").write_text(json.dumps({"run_id": run_id, "shipped_bytes": 0}))
    with track_run(make_run(project, device="cuda"), SETTINGS):
        log(project, 3)
    assert only_run_id(project) == run_id
    run = connect().get_run(run_id)
    assert (run.info.status, run.data.tags["hardware.device"]) == ("FINISHED", "cuda")
    assert [point.step for point in connect().get_metric_history(run_id, "train_loss")] == [1, 2, 3]


def write_lineage(project: Path, lineage: dict[str, str]) -> Path:
    (project / "models" / "gpt" / "lineage.json").write_text(json.dumps(lineage))
    return project / "models" / "gpt"


def test_what_a_later_stage_measures_is_in_the_trainings_run(project: Path) -> None:
    with track_run(make_run(project), SETTINGS):
        log(project, 1, 2)
    model = write_lineage(project, {"run_key": "key"})
    log_results(model, "evaluate", {"val_loss": 3.5, "baselines": {"xz": 1.5}})
    log_results(model, "evaluate", {"val_loss": 3.25, "baselines": {"xz": 1.5}})
    (run,) = read_runs()
    assert (run.run_id, run.name, run.experiment, run.status) == (only_run_id(project), "key", "lmcore", "finished")
    assert run.metrics["evaluate.val_loss"] == 3.25
    assert run.metrics["evaluate.baselines.xz"] == 1.5
    assert run.metrics["train_loss"] == 0.5
    assert run.params["train.seed"] == "1"
    assert run.params["encode.shard_tokens"] == "9"


@pytest.mark.parametrize("lineage", [{}, {"run_key": "of another machine"}])
def test_a_model_from_elsewhere_gets_no_run(project: Path, lineage: dict[str, str]) -> None:
    log_results(write_lineage(project, lineage), "evaluate", {"val_loss": 3.5})
    assert read_runs() == []


def test_results_without_a_server_cost_a_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    log_results(write_lineage(project, {"run_key": "key"}), "evaluate", {"val_loss": 3.5})
    (complaint,) = capsys.readouterr().err.splitlines()
    assert "MLflow at http://127.0.0.1:9 lacks what evaluate measured (" in complaint
    assert complaint.endswith("): dvc repro -f -s evaluate")


def test_a_failed_training_is_marked(project: Path) -> None:
    with pytest.raises(RuntimeError), track_run(make_run(project), SETTINGS):
        raise RuntimeError
    assert connect().get_run(only_run_id(project)).info.status == "FAILED"


def test_a_deleted_run_is_made_anew(project: Path) -> None:
    with track_run(make_run(project), SETTINGS):
        log(project, 1)
    first = only_run_id(project)
    connect().delete_run(first)
    with track_run(make_run(project), SETTINGS):
        log(project, 2)
    second = only_run_id(project)
    assert second != first
    assert [point.step for point in connect().get_metric_history(second, "train_loss")] == [1, 2]


def test_a_server_that_is_not_there_costs_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(session, "FLUSH_SECONDS", 20.0)
    with track_run(make_run(project), SETTINGS):
        started = time.monotonic()
        log(project, 1)
        assert time.monotonic() - started < 60  # one synchronous call would take 247 seconds
    complaint = capsys.readouterr().err
    assert "lacks a part of this run" in complaint
    assert "metrics.jsonl" in complaint


@pytest.mark.slow
def test_processes_that_meet_an_empty_store_at_once(project: Path) -> None:
    """Without the lock they break the database: three trials of three."""
    code = "from lmcore.tracking.store import connect; print(connect().get_experiment_by_name('lmcore').experiment_id)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    workers = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = {worker.communicate()[0].strip() for worker in workers}
    assert answers == {"1"}
    assert {worker.returncode for worker in workers} == {0}


def test_the_code_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "sunny-day")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    assert describe_code() == {"dvc.exp_name": "sunny-day"}
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", "--allow-empty"],
    ):
        subprocess.run(["git", *command], check=True)
    assert len(describe_code()["git.commit"]) == 40


def test_flatten() -> None:
    assert flatten({"train": {"seed": 1}, "tokenizer": "ab"}) == {"train.seed": 1, "tokenizer": "ab"}
