"""The commands, as a user calls them."""

import importlib
import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from imports import ROOT

from lmcore.cli import main
from lmcore.params import read_params
from lmcore.prepare.documents import Document, DocumentWriter
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokenizer.pretrained import list_pretrained

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's folder with params.yaml and the recipes."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    return tmp_path


@pytest.fixture
def call(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command in this process and the project's folder: exit status, output, errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(project)
        monkeypatch.delenv("DVC_ROOT", raising=False)
        monkeypatch.setattr(sys, "argv", ["lmcore", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = capsys.readouterr()
        return int(ended.value.code or 0), output, errors

    return call


def lmcore(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"}
    return subprocess.run(
        [sys.executable, "-m", "lmcore", *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_is_quick_and_names_the_commands(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = lmcore("--help", folder=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0
    assert {"recipe", "doctor", "tokenizers"} <= set(result.stdout.split())
    # Of processor time, which other processes do not lengthen.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_a_recipe_is_written_from_any_folder_of_the_project(project: Path) -> None:
    (project / "data").mkdir()
    result = lmcore("recipe", "shakespeare-char", folder=project / "data")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert "download.source: stdlib -> tinyshakespeare" in lines
    assert lines[-1] == "params.yaml is recipe shakespeare-char now: dvc repro runs it"
    assert read_params(project / "params.yaml")["train"]["batch_size"] == 64


def test_a_mistake_is_one_line(project: Path) -> None:
    result = lmcore("recipe", "nanno", folder=project)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: recipe 'nanno': did you mean nano? must be one of 3b, base, ")
    assert len(result.stderr.splitlines()) == 1


def test_what_is_not_valid_is_not_written(project: Path, call: Call) -> None:
    (project / "broken.yaml").write_text("train:\n  seed: -1\n")
    before = (project / "params.yaml").read_bytes()
    status, output, errors = call("recipe", "broken.yaml")
    assert (status, output) == (1, "")
    assert errors == "error: recipe broken over params.yaml: train.seed=-1: must be greater than or equal to 0\n"
    assert (project / "params.yaml").read_bytes() == before


def test_a_dry_run_shows_the_difference_and_writes_nothing(project: Path, call: Call) -> None:
    before = (project / "params.yaml").read_bytes()
    status, output, errors = call("recipe", "nano", "--dry-run")
    assert (status, errors) == (0, "")
    assert "model.d_model: 128 -> 64" in output.splitlines()
    assert (project / "params.yaml").read_bytes() == before


def test_without_a_name_all_are_listed(project: Path, call: Call) -> None:
    status, output, _ = call("recipe")
    assert status == 0
    assert [line.split()[0] for line in output.splitlines()[:2]] == ["recipe", "nano"]


@pytest.mark.parametrize("command", ["recipe", "doctor"])
def test_outside_a_project(project: Path, call: Call, command: str) -> None:
    shutil.rmtree(project / "recipes")
    (project / "dvc.yaml").unlink()
    status, output, errors = call(command)
    assert (status, output) == (1, "")
    assert "run in the project's folder" in errors
    assert len(errors.splitlines()) == 1


def test_doctor_fails_when_something_needs_the_user(project: Path, call: Call) -> None:
    (project / "params.yaml").write_text("train:\n")
    status, output, errors = call("doctor")
    assert (status, errors) == (1, "")
    assert "MEND  model is empty: must be a section with the keys n_layers, " in output


def test_tokenizers_are_compared_on_the_validation_text(project: Path, call: Call) -> None:
    ByteTokenizer.create().save(project / "models" / "tokenizer")
    assert call("tokenizers", "models/tokenizer", "models/none") == (
        1,
        "",
        f"error: models/none: is neither a folder with a tokenizer.json nor a name of tiktoken's "
        f"({', '.join(list_pretrained())})\n",
    )
    status, output, errors = call("tokenizers", "models/tokenizer", "models/tokenizer")
    assert (status, output) == (1, "")
    assert "data/documents/validation does not exist: run the prepare stage (dvc repro prepare), or name" in errors
    with DocumentWriter(project / "data" / "documents" / "validation", "own") as writer:
        writer.write([Document.of("a.txt", "the cat")])
    status, output, errors = call("tokenizers", "models/tokenizer", "models/tokenizer")
    assert (status, errors) == (0, "")
    assert "texts: 1, bytes: 7" in output


def test_the_installed_command_is_this_one() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    module, _, function = scripts["lmcore"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("command", [("compare",), ("trace", "models/gpt")])
def test_without_git(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    status, _, errors = call(*command)
    assert status == 1
    assert re.fullmatch(r"error: git is not installed, and .*: install git\n", errors)
