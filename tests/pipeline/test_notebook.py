"""The notebook is committed without what it computed, and runs from top to bottom in a checkout."""

import json
import os
import subprocess
from pathlib import Path

import nbformat
import pytest
from imports import ROOT
from nbclient import NotebookClient
from nbformat import NotebookNode
from projects import Project, finished_once

PATH = Path("notebooks/quickstart.ipynb")


@pytest.fixture
def notebook() -> NotebookNode:
    return nbformat.read(ROOT / PATH, as_version=4)


def cells(notebook: NotebookNode, kind: str) -> dict[str, NotebookNode]:
    return {cell["id"]: cell for cell in notebook.cells if cell.cell_type == kind}


def test_it_is_clean_and_short(notebook: NotebookNode) -> None:
    nbformat.validate(notebook)
    code = cells(notebook, "code")
    for name, cell in code.items():
        assert cell.outputs == [], f"{name} has outputs: clear them before the commit"
        assert cell.execution_count is None, f"{name} has been counted: clear all outputs before the commit"
        assert set(cell.metadata) <= {"tags"}, f"{name} has what an editor left: {dict(cell.metadata)}"
        assert len(cell.source.splitlines()) <= 30
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert len(cells(notebook, "markdown")) >= len(code) / 2, "cells are explained"


def test_the_pages_that_it_names_exist(notebook: NotebookNode) -> None:
    text = "\n".join(cell.source for cell in cells(notebook, "markdown").values())
    links = {part.partition(")")[0] for part in text.split("](")[1:]}
    assert links
    assert not [link for link in links if not (ROOT / PATH.parent / link).exists()]


def execute(notebook: NotebookNode, folder: Path, project: Project, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """All that each code cell printed or showed, as text."""
    # The kernel gets this process's variables; DVC's commands in it get the kernel's.
    for name in set(os.environ) - set(project.environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", os.defpath)  # as where the environment was not activated
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return {name: json.dumps(cell.outputs) for name, cell in cells(notebook, "code").items()}


@finished_once
@pytest.mark.slow
def test_it_runs(finished: Project, notebook: NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = finished.clone(tmp_path / "checkout")
    project.run("git", "config", "user.name", "a")
    project.run("git", "config", "user.email", "a@b")
    project.run("dvc", "cache", "dir", "--local", str(finished.folder / ".dvc" / "cache"))
    project.run("dvc", "checkout")
    place = [cell["id"] for cell in notebook.cells].index("parameters")
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("STEPS = 6", id="injected-parameters"))
    shown = execute(notebook, project.folder / "notebooks", project, monkeypatch)

    assert str(project.folder) in shown["checkout"]
    assert "Ran experiment(s): first" in shown["first"]
    assert "bits per byte" in shown["measured"]
    assert "image/svg+xml" in shown["curve"]
    assert "the cat" in shown["samples"]
    for name in ("short", "short-hot"):
        assert f"Ran experiment(s): {name}" in shown[name]
        assert "Running stage 'encode'" not in shown[name]
        assert "\\u001b" not in shown[name], "a live line is drawn into the cell"
        assert name in shown["show"]
        assert name in shown["compare"]
    assert "train.learning_rate" in shown["compare"]
    assert "image/png" in shown["curves"]
    assert "class Node:" in shown["sample"]
    assert "import " in shown["library"]
    assert not [name for name, text in shown.items() if "ERROR: " in text or "error: " in text]
    assert project.status() == ""  # the first experiment is what the commit holds
    assert project.contents("models/gpt") == finished.contents("models/gpt")


@pytest.mark.slow
def test_without_a_checkout_it_clones_one(
    notebook: NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "origin").mkdir()
    origin = Project(tmp_path / "origin")
    code = cells(notebook, "code")
    code["parameters"].source = f"REPOSITORY = {str(origin.folder)!r}"
    first = code["checkout"]
    notebook.cells = [code["parameters"], first, nbformat.v4.new_code_cell(first.source, id="again")]
    (tmp_path / "colab").mkdir()
    shown = execute(notebook, tmp_path / "colab", origin, monkeypatch)
    clone = tmp_path / "colab" / "lmcore"
    assert f"the project is in {clone}" in shown["checkout"]
    assert "Cloning" not in shown["again"]
    assert f"the project is in {clone}" in shown["again"]
    command = ["git", "config", "--local", "user.name"]
    assert subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True).stdout == "notebook\n"
