"""A real MLflow server over a real PostgreSQL, both started here and ended here."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def find_postgres() -> Path | None:
    """The folder of PostgreSQL's programs, which Debian keeps off the PATH."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@contextmanager
def serve_postgres() -> Iterator[str]:
    """The folder of an empty cluster and its socket; PostgreSQL refuses root, which becomes another user."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: the path of a socket has 107 characters at most
    options: dict[str, int] = {}
    if os.geteuid() == 0:
        names = [entry.pw_name for entry in pwd.getpwall()]
        user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        options = {"user": user.pw_uid, "group": user.pw_gid}
    data = folder / "data"
    initialise = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "--no-instructions"]
    subprocess.run(initialise, check=True, cwd=folder, stdout=subprocess.DEVNULL, **options)
    settings = [f"unix_socket_directories={folder}", "listen_addresses=", "fsync=off"]
    command = [programs / "postgres", "-D", data, *(part for setting in settings for part in ("-c", setting))]
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, **options)
    try:
        ready = [programs / "pg_isready", "-q", "-h", folder]
        wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, server)
        yield str(folder)
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown
        server.wait()
        shutil.rmtree(folder)
        Path(log.name).unlink()


def create_database(folder: str, name: str) -> str:
    """A new database's address."""
    programs = find_postgres()
    assert programs is not None
    subprocess.run([programs / "createdb", "-h", folder, "-U", "postgres", name], check=True)
    return f"postgresql+psycopg://postgres@/{name}?host={folder}"


class MlflowServer:
    """`mlflow server` on one port, to be killed and started again."""

    def __init__(self, store: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.store, self.folder = store, folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        arguments = ["--backend-store-uri", self.store, "--artifacts-destination", str(self.folder), "--workers", "1"]
        arguments += ["--host", "127.0.0.1", "--port", str(self.port)]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *arguments],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: answers(f"{self.uri}/health"), self.process)

    def kill(self) -> None:
        """SIGKILL, to its workers too."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def wait_until(condition: object, process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    assert callable(condition)
    while not condition():
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{process.args} is not ready after {seconds:.0f} s"
        time.sleep(0.1)
