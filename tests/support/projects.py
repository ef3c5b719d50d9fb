"""A small project of its own for tests that run the real pipeline, and a wait for what its processes do."""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import chdir, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Self

import psutil
import pytest
from ruamel.yaml import YAML
from tiny import TINY_MODEL, make_texts

CHECKOUT = Path(__file__).parents[2]
OUTPUTS = ("data", "models", "reports", "dvc.lock")
SMALL: dict[str, dict[str, Any]] = {
    "download": {"path": "corpus"},
    "prepare": {"validation_fraction": 0.2},
    "train_tokenizer": {"vocab_size": 300},
    "model": TINY_MODEL.model_dump(),
    "train": {"max_steps": 12, "warmup_steps": 2, "log_every": 2, "eval_every": 4, "checkpoint_every_steps": 3},
    "sample": {"prompts": ["the cat", ""], "max_new_tokens": 8},
}


class Project:
    """A clone of the checkout as it stands, uncommitted changes included, with a corpus of its own."""

    def __init__(self, folder: Path, sections: Mapping[str, Mapping[str, Any]] = SMALL) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=CHECKOUT,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (CHECKOUT / name).is_file() and name != "dvc.lock" and not name.startswith("reports/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(CHECKOUT / name, folder / name)
        (folder / "corpus").mkdir()
        for number, text in enumerate(make_texts(60, seed=1)):
            (folder / "corpus" / f"{number:02d}.txt").write_text(text)
        yaml = YAML()
        params = yaml.load(folder / "params.yaml")
        for section, values in sections.items():
            params[section].update(values)
        yaml.dump(params, folder / "params.yaml")
        self.run("git", "init", "--quiet", "--initial-branch=main")
        self.commit("start")

    @classmethod
    def at(cls, folder: Path) -> Self:
        """The one that lies there already."""
        project = cls.__new__(cls)
        project.folder = folder
        return project

    def clone(self, folder: Path) -> Self:
        """What a colleague has: git's files of the last commit, and nothing that DVC keeps."""
        self.run("git", "clone", "--quiet", str(self.folder), str(folder))
        return self.at(folder)

    def copy(self, folder: Path) -> Self:
        """The same project in another folder, which shares nothing with it and where no experiment has run."""
        self.run("cp", "--archive", str(self.folder), str(folder))  # hard links within stay hard links
        copied = self.at(folder)
        shutil.rmtree(folder / ".dvc" / "tmp", ignore_errors=True)
        for name in copied.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split():
            copied.run("git", "update-ref", "-d", name)
        return copied

    def environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "GIT_"))},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": "",
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@b",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@b",
        }

    def start(
        self, *command: str, sabotage: str = "", stdout: IO[str] | int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        """`sabotage`: what is to befall a process on the way, see tests/support/sabotage.

        Then in a session of its own, as a terminal gives. In the session of process 1, in which CI may run everything,
        Linux takes each death of a child of process 1 for what orphans its group, and where one of the group is stopped
        it hangs up on all of it (kill_orphaned_pgrp in kernel/exit.c): the death of a queue's worker ended what the
        worker had started.
        """
        environment = self.environment()
        if sabotage:
            environment |= {"PYTHONPATH": str(CHECKOUT / "tests" / "support" / "sabotage"), "SABOTAGE": sabotage}
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=bool(sabotage),
        )

    def run(self, *command: str, fails: bool = False, sabotage: str = "") -> str:
        with TemporaryFile("w+") as file:  # the workers of a queue would keep a pipe open
            process = self.start(*command, sabotage=sabotage, stdout=file)
            process.wait()
            file.seek(0)
            output = file.read()
        assert (process.returncode != 0) == fails, f"{' '.join(command)} gave {process.returncode}:\n{output}"
        return output

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def status(self) -> str:
        return self.run("git", "status", "--porcelain")

    def metrics(self, stage: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.folder / "reports" / "metrics" / f"{stage}.json").read_text())
        return values

    def contents(self, *paths: str) -> dict[str, bytes]:
        """The files below these paths by name."""
        files = [file for path in paths for file in [self.folder / path, *(self.folder / path).rglob("*")]]
        return {str(file.relative_to(self.folder)): file.read_bytes() for file in files if file.is_file()}


def dvc(folder: Path, *arguments: str) -> None:
    """DVC in this process, where no stage runs: a process of its own takes a second or two to import it."""
    from dvc.cli import main

    with chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its libraries' own, which pytest would raise in its middle
        status = main([*arguments])
    assert status == 0, f"dvc {' '.join(arguments)} gave {status}"


finished_once = pytest.mark.xdist_group("finished")  # tests that share one finished project share a process


def find_stopped_child(parent: subprocess.Popen[str], name: str) -> int | None:
    """The id of the process below `parent` whose command line holds `name`, once it is stopped."""
    assert parent.poll() is None, f"{name} did not stop:\n{parent.communicate()[0]}"
    for child in psutil.Process(parent.pid).children(recursive=True):  # DVC's, or its shell's
        with suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_STOPPED and name in child.cmdline():
                return child.pid
    return None


def wait_for(condition: Callable[[], int | None]) -> int:
    """What `condition` gives as soon as it gives something."""
    deadline = time.monotonic() + 300
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen within five minutes"
        time.sleep(0.02)
    return found


def kill_tree(*roots: int) -> None:
    """SIGKILL for these processes and all below them, at once as in a reboot."""
    processes = [process for root in roots for process in (psutil.Process(root), *psutil.Process(root).children(True))]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes)
