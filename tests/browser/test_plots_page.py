"""The page of `dvc plots` in a browser without a network: every plot is drawn, by what the one file holds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser
from imports import ROOT

CURVES = {
    "Training and validation loss",
    "Learning rate",
    "Gradient norm",
    "Validation loss by tokens seen",
    "Loss by position in the context",
}
DRAWN = """Object.fromEntries([...document.querySelectorAll('#curves .card')].map((card) =>
    [card.querySelector('h3').textContent, card.querySelectorAll('svg .mark-line path').length]))"""

pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The checkout's pipeline and committed reports, as a clone has them."""
    folder = tmp_path / "project"
    for name in ("dvc.yaml", "dvc.lock", "params.yaml", ".dvcignore", ".gitignore", ".dvc/config", "data/own/.gitkeep"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
    shutil.copytree(ROOT / "reports", folder / "reports", ignore=shutil.ignore_patterns("samples", "*_per_second.csv"))
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "start"]):
        run(folder, "git", "-c", "user.name=a", "-c", "user.email=a@b", *command)
    return folder


def run(folder: Path, *command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr, done.stderr
    return done.stdout


def open_page(browser: Browser, page: Path) -> dict[str, Any]:
    """Lines drawn by the plot's title. The console must be silent, and nothing be asked for but the page's pictures."""
    browser.open(page.as_uri())
    browser.wait("document.body.dataset.plots")
    drawn: dict[str, Any] = browser.run(f"return {DRAWN}")
    assert browser.console() == []
    requests = browser.requests()
    assert requests[0] == page.as_uri()
    assert all(url.startswith(page.parent.as_uri()) for url in requests), requests
    return drawn


def test_a_fresh_clones_plots_without_a_network(browser: Browser, project: Path) -> None:
    run(project, "dvc", "plots", "show")
    drawn = open_page(browser, project / "dvc_plots" / "index.html")
    # No speed in a clone, and no complaint about that; two lines are the training's and the validation's loss.
    assert drawn == {title: 1 + (title == "Training and validation loss") for title in CURVES}
    loaded = "[...document.images].map((image) => [image.alt, image.naturalWidth > 0])"
    assert browser.run(f"return {loaded}") == [
        ["reports/plots/corpus.svg", True],
        ["reports/plots/training.svg", True],
    ]
