"""A project with one run, and the stores that it is tracked in: a SQLite file, and a server over PostgreSQL."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from imports import ROOT
from mlflow_server import MlflowServer, create_database, serve_postgres

from lmcore.tracking import shipper
from lmcore.tracking.store import connect

SERVER = [pytest.mark.slow, pytest.mark.xdist_group("mlflow-server")]


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with serve_postgres() as folder:
        yield folder


@pytest.fixture(scope="session")
def server(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(create_database(postgres, "mlflow"), tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with all tables: MLflow takes a second to make them, in every test."""
    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        connect("somebody else's")
    return folder / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipper, "SHIP_SECONDS", 0.05)
    (tmp_path / "runs" / f"{tmp_path.name}").mkdir(parents=True)
    (tmp_path / "models" / "gpt").mkdir(parents=True)
    (tmp_path / "models" / "gpt" / "config.json").write_text("{}")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


@pytest.fixture(params=["sqlite", pytest.param("server", marks=SERVER)])
def stored(request: pytest.FixtureRequest, project: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project; what it tracks goes to a file of its own, or to the server that all tests share."""
    if request.param == "sqlite":
        shutil.copyfile(empty_store, project / "mlflow.db")
    else:
        server: MlflowServer = request.getfixturevalue("server")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return project
