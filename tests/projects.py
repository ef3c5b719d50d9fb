"""A project of its own for tests of the whole pipeline: a clone of this checkout with a tiny corpus."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pytest
from ruamel.yaml import YAML
from tiny import TINY_MODEL, make_texts

from lmcore.train.speed import SPEED_FILE

CHECKOUT = Path(__file__).parents[1]
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
        """The same project in another folder, which shares nothing with it; hard links within stay such."""
        self.run("cp", "--archive", str(self.folder), str(folder))
        return self.at(folder)

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

    def start(self, *command: str, sabotage: str = "") -> subprocess.Popen[str]:
        """`sabotage`: what is to befall a process on the way, see tests/sabotage."""
        environment = self.environment()
        if sabotage:
            environment |= {"PYTHONPATH": str(CHECKOUT / "tests" / "sabotage"), "SABOTAGE": sabotage}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *command: str, fails: bool = False) -> str:
        process = self.start(*command)
        output, _ = process.communicate()
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
        """What should come out the same again: all files but the table of speeds."""
        files = [file for path in paths for file in [self.folder / path, *(self.folder / path).rglob("*")]]
        names = {str(file.relative_to(self.folder)): file for file in files if file.is_file()}
        return {name: file.read_bytes() for name, file in names.items() if name != SPEED_FILE}


finished_once = pytest.mark.xdist_group("finished")  # tests that share one finished project share a process
