"""Runs in MLflow, in a SQLite file and on a server alike: what they carry, and that a resumed one is the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow_server import create_database
from tracked import BEGIN, SETTINGS, log, make_params, make_run, seal

from lmcore.tracking.description import describe_code
from lmcore.tracking.session import log_results, track_run
from lmcore.tracking.spool import SYSTEM
from lmcore.tracking.store import StoredRun, connect, read_runs

MLFLOW = make_params("mlflow")

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and its libraries' own


def only_run(project: Path) -> StoredRun:
    key = make_run(project).folder.name
    (run,) = [run for run in read_runs() if run.run_key == key]
    return run


def history(run: StoredRun, name: str = "train_loss") -> list[tuple[int, float, int]]:
    return [(point.step, point.value, point.timestamp) for point in connect().get_metric_history(run.run_id, name)]


def models(run: StoredRun) -> dict[str, object]:
    """The run's logged models by name, the least validation loss first."""
    client = connect()
    experiment = client.get_run(run.run_id).info.experiment_id
    query, order = f"source_run_id = '{run.run_id}'", [{"field_name": "metrics.val_loss", "ascending": True}]
    found = client.search_logged_models([experiment], filter_string=query, order_by=order)
    assert len({model.name for model in found}) == len(found)
    return {model.name: model for model in found}


def test_a_training_is_one_run_with_everything(stored: Path) -> None:
    tracked = make_run(stored)
    with track_run(tracked, SETTINGS, MLFLOW):
        log(tracked, 1, 2, 3)
    run = only_run(stored)
    assert (run.name, run.experiment, run.status) == (tracked.folder.name, "lmcore", "finished")
    client = connect()
    data = client.get_run(run.run_id).data
    assert data.params == {
        "train.seed": "1",
        "train.learning_rate": "0.001",
        "train.mixture.web_books": "0.5",
        "model.n_layers": "2",
    }
    assert run.tags["hardware.device"] == "cpu"
    settings = {name for name in run.tags if name.startswith("params.")}
    assert settings == {"params.encode.shard_tokens", "params.sample.temperature"}
    assert history(run) == [(step, 1.0 / step, BEGIN + step) for step in (1, 2, 3)]
    datasets = client.get_run(run.run_id).inputs.dataset_inputs
    assert {entry.dataset.name: entry.dataset.digest for entry in datasets} == {
        "tokens.train": "ab" * 16,
        "tokenizer": "cd" * 16,
    }


def test_a_resumed_training_is_the_same_run_without_doubled_points(stored: Path) -> None:
    tracked = make_run(stored)
    with pytest.raises(SystemExit), track_run(tracked, SETTINGS, MLFLOW):
        log(tracked, 1, 2)
        raise SystemExit(143)
    run = only_run(stored)
    assert run.status == "killed"
    # The worst kill: points were sent, but not noted as sent.
    (tracked.folder / "mlflow.json").write_text(json.dumps({"run_id": run.run_id}))
    with track_run(make_run(stored, device="cuda"), SETTINGS, MLFLOW):
        log(tracked, 3)
    assert only_run(stored).run_id == run.run_id
    assert (only_run(stored).status, only_run(stored).tags["hardware.device"]) == ("finished", "cuda")
    assert [step for step, _, _ in history(run)] == [1, 2, 3]


def test_checkpoints_are_models_with_their_loss(stored: Path) -> None:
    tracked = make_run(stored)
    with pytest.raises(RuntimeError), track_run(tracked, SETTINGS, MLFLOW):
        log(tracked, 1, 2)
        first = seal(tracked, 1)
        seal(tracked, 2)
        raise RuntimeError
    run = only_run(stored)
    assert run.status == "failed"
    best, worst = models(run).values()
    assert [best.name, worst.name] == ["checkpoint-2", "checkpoint-1"]
    assert [(metric.key, metric.value, metric.step) for metric in best.metrics] == [("val_loss", 1.0, 2)]
    assert (best.model_type, best.status, best.tags["lmcore.state"]) == ("checkpoint", "READY", "kept")
    # A kill between the entry and its state: the next time it is completed.
    connect().finalize_logged_model(best.model_id, "FAILED")
    first.unlink()
    with track_run(tracked, SETTINGS, MLFLOW):
        log(tracked, 4)
        seal(tracked, 4)
    found = models(run)
    assert list(found) == ["model", "checkpoint-4", "checkpoint-2", "checkpoint-1"]
    assert found["checkpoint-2"].model_id == best.model_id
    states = [found[f"checkpoint-{step}"].tags["lmcore.state"] for step in (1, 2, 4)]
    assert states == ["pruned", "kept", "kept"]
    outputs = connect().get_run(run.run_id).outputs.model_outputs
    assert sorted(output.model_id for output in outputs) == sorted(model.model_id for model in found.values())
    assert [step for step, _, _ in history(run, "val_loss")] == [1, 2, 4]


def test_the_finished_model_is_uploaded_once(stored: Path) -> None:
    tracked = make_run(stored)
    with track_run(tracked, SETTINGS, MLFLOW):
        log(tracked, 1)
    run = only_run(stored)
    client, model = connect(), models(run)["model"]
    assert [(metric.key, metric.step) for metric in model.metrics] == [("val_loss", 1)]
    files = {file.path for file in client.list_artifacts(run.run_id, "model")}
    expected = ("MLmodel", "requirements.txt", "mlflow_pyfunc.py", "code", "artifacts")
    assert {f"model/{name}" for name in expected} <= files
    # Killed between the upload and the end of the training, which then comes to its end once more.
    with track_run(tracked, SETTINGS, MLFLOW):
        pass
    assert models(run)["model"].model_id == model.model_id
    assert not (tracked.folder / "served_model").exists()


def test_system_metrics_go_on_with_their_step(stored: Path) -> None:
    tracked, params = make_run(stored), make_params("mlflow", seconds=1.0)
    with pytest.raises(SystemExit), track_run(tracked, SETTINGS, params):
        wait_for_lines(tracked.folder / SYSTEM, 1)
        raise SystemExit(143)
    with (tracked.folder / SYSTEM).open("a") as file:
        file.write('{"step": 1, "mach')  # torn by a kill
    (tracked.folder / "mlflow.json").write_text(json.dumps({"run_id": only_run(stored).run_id}))
    with track_run(tracked, SETTINGS, params):
        wait_for_lines(tracked.folder / SYSTEM, 2)
    lines = [json.loads(line) for line in (tracked.folder / SYSTEM).read_text().splitlines()]
    points = history(only_run(stored), "system/cpu_utilization_percentage")
    assert [(step, time) for step, _, time in points] == [(line["step"], line["machine"]["time"]) for line in lines]
    assert [step for step, _, _ in points] == list(range(len(points)))
    assert all(0 <= value <= 100 for _, value, _ in points)
    names = {"system/system_memory_usage_megabytes", "system/system_memory_usage_percentage"}
    assert names <= only_run(stored).metrics.keys()
    assert not (tracked.folder / "metrics.jsonl").exists()


def wait_for_lines(path: Path, count: int) -> None:
    import time

    deadline = time.monotonic() + 60
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def write_lineage(project: Path, lineage: dict[str, str]) -> Path:
    (project / "models" / "gpt" / "lineage.json").write_text(json.dumps(lineage))
    return project / "models" / "gpt"


def test_what_a_later_stage_measures_is_in_the_trainings_run(stored: Path) -> None:
    tracked = make_run(stored)
    with track_run(tracked, SETTINGS, MLFLOW):
        log(tracked, 1, 2)
    model = write_lineage(stored, {"run_key": tracked.folder.name})
    log_results(model, "evaluate", {"val_loss": 3.5, "baselines": {"xz": 1.5}})
    log_results(model, "evaluate", {"val_loss": 3.25, "baselines": {"xz": 1.5}, "sha256": "ab"})
    run = only_run(stored)
    assert run.metrics["evaluate.val_loss"] == 3.25
    assert run.metrics["evaluate.baselines.xz"] == 1.5
    assert run.metrics["train_loss"] == 0.5
    assert run.params["train.seed"] == "1"
    assert run.params["encode.shard_tokens"] == "9"


@pytest.mark.parametrize("lineage", [{}, {"run_key": "of another machine"}])
def test_a_model_from_elsewhere_gets_no_run(project: Path, lineage: dict[str, str]) -> None:
    log_results(write_lineage(project, lineage), "evaluate", {"val_loss": 3.5})
    assert read_runs() == []
    assert not (project / "mlflow.db").exists()


def test_what_a_slow_server_made_twice_is_there_once(stored: Path) -> None:
    """The answer to the first request did not come in time, and the request was sent again."""
    tracked, client = make_run(stored), connect()
    experiment = client.get_experiment_by_name("lmcore").experiment_id
    twins = [client.create_run(experiment, tags={"lmcore.birth": tracked.folder.name}).info.run_id for _ in range(2)]
    (tracked.folder / "mlflow.json").write_text(json.dumps({"birth": tracked.folder.name}))
    with pytest.raises(SystemExit), track_run(tracked, SETTINGS, MLFLOW):
        raise SystemExit(143)
    run = only_run(stored)
    assert run.run_id in twins
    assert {client.get_run(twin).info.lifecycle_stage for twin in twins} == {"active", "deleted"}
    for _ in range(2):
        client.create_logged_model(experiment, name="checkpoint-2", source_run_id=run.run_id)
    with track_run(tracked, SETTINGS, MLFLOW):
        log(tracked, 2)
        seal(tracked, 2)
    assert set(models(run)) == {"checkpoint-2", "model"}


def test_a_deleted_run_is_made_anew(stored: Path) -> None:
    tracked = make_run(stored)
    with track_run(tracked, SETTINGS, MLFLOW):
        log(tracked, 1)
    first = only_run(stored)
    connect().delete_run(first.run_id)
    with track_run(tracked, SETTINGS, MLFLOW):
        log(tracked, 2)
    second = only_run(stored)
    assert second.run_id != first.run_id
    assert [step for step, _, _ in history(second)] == [1, 2]
    assert list(models(second)) == ["model"]


CONNECT = "from lmcore.tracking.store import connect; print(connect().get_experiment_by_name('lmcore').experiment_id)"


def meet_at_once(uri: str | None) -> None:
    """Three processes open the store for the first time. Without the lock they break it: three trials of three."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment |= {"MLFLOW_TRACKING_URI": uri} if uri else {}
    workers = [
        subprocess.Popen([sys.executable, "-c", CONNECT], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = {worker.communicate()[0].strip() for worker in workers}
    assert answers == {"1"}
    assert {worker.returncode for worker in workers} == {0}


@pytest.mark.slow
def test_processes_that_meet_an_empty_file_at_once(project: Path) -> None:
    meet_at_once(None)


@pytest.mark.slow
@pytest.mark.xdist_group("mlflow-server")
def test_processes_that_meet_an_empty_database_at_once(project: Path, postgres: str) -> None:
    meet_at_once(create_database(postgres, "shared"))


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
