"""DVC's queue of experiments: what waits, what runs and what nobody runs any more, and which workers are alive."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import psutil

from lmcore.errors import ArtifactError

EXPERIMENTS = Path(".dvc", "tmp", "exps")


@dataclass(frozen=True)
class Task:
    """An experiment of the queue: `number` is the beginning of its commit, `status` DVC's word for it."""

    number: str
    name: str
    status: str


@dataclass(frozen=True)
class Attempt:
    """How far an experiment of the queue is: `ended` if it was recorded or has failed, `lost` if nobody runs it."""

    state: Literal["waiting", "running", "ended", "lost"]
    folder: Path | None = None  # where DVC keeps what it prints

    @property
    def log(self) -> str:
        """What it has printed so far."""
        paths = self.folder.glob("*.out") if self.folder else []
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)


def read_queue(root: Path) -> list[Task]:
    """What `dvc queue status` lists, which takes two seconds; not asked where nothing was ever queued."""
    broker = root / EXPERIMENTS / "celery" / "broker"
    if not any(broker.glob("*/*.celery.msg")):
        return []
    rows = [line.split() for line in run_dvc(root, "queue", "status").splitlines()]
    return [Task(row[0], row[1], row[-1]) for row in rows if row and re.fullmatch("[0-9a-f]{7,}", row[0])]


def count_workers(root: Path) -> int:
    """How many workers of the queue are alive."""
    paths = (root / EXPERIMENTS / "celery").glob("dvc-exp-worker-*.json")
    return sum(_is_alive(process) for path in paths if (process := read_noted(path)))


def is_lost(root: Path, number: str, has_workers: bool) -> bool:
    """Whether nothing is at work on a task that a worker has begun; between its steps a living worker is."""
    path = next((root / EXPERIMENTS / "run").glob(f"{number}*/*.json"), None)
    process = None if path is None else read_noted(path)
    if process is None:
        return not has_workers
    # DVC notes a status where a process ends and somebody waits for it.
    return not _is_alive(process) and (process["returncode"] is None or not has_workers)


def find_attempt(root: Path, name: str) -> Attempt:
    """How far the experiment `name` is."""
    for path in (root / EXPERIMENTS / "run").glob("*/*.run"):
        if (info := read_noted(path)) and (info["name"], info["location"]) == (name, "dvc-task"):
            if not Path(info["root_dir"]).exists():
                return Attempt("ended", path.parent)  # the worker removes it when all is said
            lost = is_lost(root, path.stem, count_workers(root) > 0)
            return Attempt("lost" if lost else "running", path.parent)
    stashed = run_git(root, "log", "-g", "--format=%gs", "refs/exps/celery/stash", "--").splitlines()
    return Attempt("waiting" if any(line.endswith(f":{name}") for line in stashed) else "lost")


def run_dvc(root: Path, *arguments: str, threads: int | None = None) -> str:
    """What DVC prints. Raises ArtifactError with its complaint where it fails."""
    environment = {**({"OMP_NUM_THREADS": str(threads)} if threads else {}), **os.environ}
    with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:  # of a pipe the workers would keep the other end
        command = [sys.executable, "-m", "dvc", *arguments]
        result = subprocess.run(command, cwd=root, env=environment, stdout=output, stderr=errors, check=False)
        for file in (output, errors):
            file.seek(0)
        if result.returncode:
            complaint = next((line for line in errors if line.startswith("ERROR")), "it failed")
            raise ArtifactError(f"dvc {' '.join(arguments)}: {complaint.removeprefix('ERROR: ').strip()}")
        return output.read()


def run_git(root: Path, *arguments: str) -> str:
    """What git prints; nothing where it fails. Raises ArtifactError where there is none."""
    return (read_git(root, *arguments) or b"").decode("utf-8", "surrogateescape").strip()


def read_git(root: Path, *arguments: str) -> bytes | None:
    """Return what git prints as it is, None where it fails. Raises ArtifactError where there is no git."""
    try:
        result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    except FileNotFoundError:
        raise ArtifactError("git is not installed, and commits and experiments are in it: install git") from None
    require_owner(result.stderr.decode("utf-8", "replace"))
    return None if result.returncode else result.stdout


def require_owner(complaint: str) -> None:
    """Raise ArtifactError where git refuses a repository because it is another user's, as in containers."""
    if "dubious ownership" in complaint:
        place = complaint.partition("'")[2].partition("'")[0]
        remedy = f"git config --global --add safe.directory {place}"
        raise ArtifactError(f"{place} belongs to another user, and git does not read it: {remedy}")


def _is_alive(process: dict[str, Any]) -> bool:
    """Whether the process that DVC noted lives, and is not another one that got its number."""
    return "dvc" in (read_command(process["pid"]) or "")


def read_noted(path: Path) -> dict[str, Any] | None:
    """What DVC has noted; None where it is just writing or removing it, which it does in place."""
    try:
        noted: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return noted


def read_command(pid: int) -> str | None:
    """The command line of a process that lives, empty where the system does not tell; None if it is dead."""
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.AccessDenied:
        return ""
    except psutil.NoSuchProcess:  # a zombie too, which is at work on nothing
        return None
