"""Stores that are away, slow, restarted, or not what they should be: training goes on, and every point arrives once."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from imports import ROOT
from mlflow_server import MlflowServer, create_database
from tracked import SETTINGS, log, make_params, make_run

from lmcore.errors import ArtifactError, ParameterError
from lmcore.tracking import shipper
from lmcore.tracking.description import TrackedRun
from lmcore.tracking.session import log_results, ship_run, track_run
from lmcore.tracking.store import connect, explain, read_runs, shown_uri

MLFLOW = make_params("mlflow")
NOWHERE = "http://127.0.0.1:9"

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and its libraries' own


def stored_steps(run: TrackedRun) -> list[int]:
    run_id = json.loads((run.folder / "mlflow.json").read_text())["run_id"]
    return [point.step for point in connect().get_metric_history(run_id, "train_loss")]


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def track_without_store(project: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What is said while a run is tracked in vain: at once, and at its end."""
    run = make_run(project)
    with track_run(run, SETTINGS, MLFLOW):
        log(run, 1, 2)
        said: list[str] = []
        wait_for(lambda: said.append(capsys.readouterr().err) or "".join(said))
    at_once, at_end = ("".join(said) + capsys.readouterr().err).splitlines()
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert at_end.endswith(f"all of it is in {run.folder}, and `lmcore ship {run.folder.name}` sends it later")
    return at_once, at_end


@pytest.mark.slow
@pytest.mark.xdist_group("mlflow-server")
def test_a_server_that_is_killed_and_started_again(
    project: Path, server: MlflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(shipper, "LONGEST_BACKOFF_SECONDS", 0.5)
    run = make_run(project)
    with track_run(run, SETTINGS, MLFLOW):
        log(run, 1, 2)
        noted = run.folder / "mlflow.json"
        wait_for(lambda: noted.exists() and "metrics.jsonl" in noted.read_text())
        server.kill()
        log(run, 3, 4)
        wait_for(lambda: "trying again" in capsys.readouterr().err)
        server.start()
        log(run, 5)
    assert capsys.readouterr().err == ""
    assert stored_steps(run) == [1, 2, 3, 4, 5]


def test_a_server_that_hangs(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It accepts and never answers; training passes, and its end gives up when the request does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        at_once, at_end = track_without_store(project, capsys)
    assert at_once.startswith(f"warning: MLflow at {uri} does not take metrics yet (")
    assert "(Timed out)" in at_end


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        (NOWHERE, "(Connection refused)"),
        ("postgresql+psycopg://a:secret@127.0.0.1:9/x", "(Connection refused)"),
        ("htp://x", "htp"),
    ],
)
def test_an_address_where_nothing_is(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uri: str, reason: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for line in track_without_store(project, capsys):
        assert line.startswith(f"warning: MLflow at {uri.replace('secret', '***')} ")
        assert reason in line
        assert "secret" not in line


def test_a_database_of_another_mlflow(project: Path, empty_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copyfile(empty_store, project / "mlflow.db")
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    at_once, _ = track_without_store(project, capsys)
    remedy = f"back it up, then `mlflow db upgrade sqlite:///{project}/mlflow.db`"
    assert f"(the database is another MLflow version's: {remedy})" in at_once
    with pytest.raises(ArtifactError, match=r"does not answer .*mlflow db upgrade"):
        read_runs()


def test_what_a_run_lacks_is_sent_later(
    project: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    track_without_store(project, capsys)
    run = make_run(project)
    (run.folder / "summary.json").write_text("{}")
    (run.artifact / "lineage.json").write_text(json.dumps({"run_key": run.folder.name}))
    settings = {**SETTINGS, "tracking": MLFLOW.model_dump()}
    assert not ship_run("", project, settings)  # still away
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    shutil.copyfile(empty_store, project / "mlflow.db")
    for _ in range(2):  # the second time there is nothing left to send
        assert ship_run("", project, settings)
        assert stored_steps(run) == [1, 2]
    (found,) = read_runs()
    assert (found.status, found.params["train.seed"]) == ("finished", "1")
    assert len(connect().list_artifacts(found.run_id, "model")) > 3


def test_runs_that_cannot_be_sent(project: Path) -> None:
    settings = {**SETTINGS, "tracking": MLFLOW.model_dump()}
    with pytest.raises(ArtifactError, match="runs/other does not exist: name a run"):
        ship_run("other", project, settings)
    run = make_run(project)
    with pytest.raises(ArtifactError, match=r"description\.json does not exist: no training was tracked there"):
        ship_run(run.folder.name, project, settings)
    with pytest.raises(ParameterError, match=r"tracking\.backends is empty"):
        ship_run(run.folder.name, project, {"tracking": {**MLFLOW.model_dump(), "backends": []}})


def test_results_without_a_server_cost_a_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    (project / "models" / "gpt" / "lineage.json").write_text('{"run_key": "key"}')
    log_results(project / "models" / "gpt", "evaluate", {"val_loss": 3.5})
    (complaint,) = capsys.readouterr().err.splitlines()
    assert f"MLflow at {NOWHERE} lacks what evaluate measured (" in complaint
    assert complaint.endswith("): dvc repro -f -s evaluate")


def test_without_mlflow_among_the_trackers_results_ask_nobody(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    (project / "models" / "gpt" / "lineage.json").write_text('{"run_key": "key"}')
    params = (project / "params.yaml").read_text()
    assert "    - mlflow\n" in params
    (project / "params.yaml").write_text(params.replace("    - mlflow\n", ""))
    log_results(project / "models" / "gpt", "evaluate", {"val_loss": 3.5})
    assert capsys.readouterr().err == ""


def test_results_start_no_telemetry(project: Path, empty_store: Path) -> None:
    """MLflow starts it when it is imported, whatever is set afterwards; it is off by itself under CI."""
    (project / "models" / "gpt" / "lineage.json").write_text('{"run_key": "key"}')
    shutil.copyfile(empty_store, project / "mlflow.db")
    code = """
from pathlib import Path
from lmcore.tracking.session import log_results
log_results(Path("models/gpt"), "evaluate", {"val_loss": 3.5})
from mlflow.telemetry import get_telemetry_client
print(get_telemetry_client())
"""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "DVC_ROOT") if name in os.environ}
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**kept, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "None\n"


@pytest.mark.slow
@pytest.mark.xdist_group("mlflow-server")
def test_postgresql_without_a_server(project: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", create_database(postgres, "direct"))
    run = make_run(project)
    with track_run(run, SETTINGS, MLFLOW):
        log(run, 1, 2)
    assert stored_steps(run) == [1, 2]
    (found,) = read_runs()
    assert found.status == "finished"
    assert (project / "mlruns").is_dir()


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for uri, shown in {
        "postgresql+psycopg://ann:s3:cret@db:5432/mlflow": "postgresql+psycopg://ann:***@db:5432/mlflow",
        "https://ann:pass@host/path": "https://ann:***@host/path",
        "postgresql+psycopg://ann:p/w@ss@db/mlflow": "postgresql+psycopg://ann:***@db/mlflow",
        "http://127.0.0.1:5000": "http://127.0.0.1:5000",
        "sqlite:////home/ann/mlflow.db": "sqlite:////home/ann/mlflow.db",
    }.items():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert shown_uri() == shown


def test_an_error_without_words_has_its_name() -> None:
    assert explain(ValueError()) == "ValueError"
    assert explain(ValueError("\n a\nb")) == "a"
