"""The page of `dvc plots` in a browser without a network: every plot is drawn, by what the one file holds."""

import os
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser
from dvc_render.html import HTML
from dvc_render.vega import VegaRenderer
from imports import ROOT
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PAGE = ROOT / ".dvc" / "plots" / "page.html"
# build/NAME.min.js of the packages on the npm registry, without the line that names its source map.
PUBLISHED = {
    "vega": "575de88557ddaab0e2a3a55ff7e3685ef4b0d10b2c2194191caba7f080d595b1",
    "vega-lite": "1f3780f0579a094c345ef2cefd8d8e0bf87a29c70e99e7d2c9b8a62973a1e35c",
    "vega-embed": "350511128fdd864c0f4cd72922e9bb32e8f30ccf7992be1ef851660501b1449a",
}
CURVES = {
    "Training and validation loss",
    "Learning rate",
    "Gradient norm",
    "Tokens per second of the latest trainings here",
    "Validation loss by tokens seen",
    "Loss by position in the context",
}
SPEED = "step,tokens_per_second,run\n2,900,one\n3,1000,one\n2,1100,other\n3,1200,other\n"
DRAWN = """Object.fromEntries([...document.querySelectorAll('#curves .card')].map((card) =>
    [card.querySelector('h3').textContent, card.querySelectorAll('svg .mark-line path').length]))"""

pytestmark = pytest.mark.xdist_group("browser")


def read_script(name: str) -> str:
    found = re.search(rf'^<script id="{name}">\n(.*?)^</script>$', PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert found
    return found[1]


@pytest.mark.parametrize(("name", "digest"), PUBLISHED.items())
def test_the_page_holds_what_was_published(name: str, digest: str) -> None:
    assert sha256(read_script(name).encode()).hexdigest() == digest


def test_the_page_holds_the_versions_that_dvcs_own_page_loads() -> None:
    wanted = re.findall(r"npm/([\w-]+@[\d.]+)", VegaRenderer.SCRIPTS)
    assert len(wanted) == 3
    assert f"npm pack {' '.join(wanted)}\n" in PAGE.read_text(encoding="utf-8"), "put these in, as the page's head says"


def test_dvc_fills_only_the_places_meant_for_it() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [text.count(f"{{{name}}}") for name in ("plot_divs", "refresh_tag", "scripts")] == [1, 1, 0]
    assert HTML(text).embed().count("<script") == text.count("<script")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's pipeline and committed reports, as a clone has them."""
    folder = tmp_path_factory.mktemp("project")
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
    assert drawn == {title: 1 + (title == "Training and validation loss") for title in CURVES if "second" not in title}
    loaded = "[...document.images].map((image) => [image.alt, image.naturalWidth > 0])"
    assert browser.run(f"return {loaded}") == [
        ["reports/plots/corpus.svg", True],
        ["reports/plots/training.svg", True],
    ]


def test_the_speed_of_trainings_is_drawn_and_left_out_of_git(browser: Browser, project: Path) -> None:
    table = project / "reports" / "plots" / "speed" / "tokens_per_second.csv"
    table.write_text(SPEED)
    try:
        # From another folder, to another folder.
        run(project / "reports", "dvc", "plots", "diff", "HEAD", "--out", "../compared")
        drawn = open_page(browser, project / "compared" / "index.html")
        assert drawn.keys() == CURVES
        assert drawn["Tokens per second of the latest trainings here"] == 2  # a line for each run
        assert "tokens_per_second" not in run(project, "git", "status", "--porcelain")
    finally:
        table.unlink()


def test_the_wheel_moves_the_page_and_with_ctrl_the_curve(browser: Browser, project: Path) -> None:
    run(project, "dvc", "plots", "show")
    open_page(browser, project / "dvc_plots" / "index.html")
    labels = "[...document.querySelectorAll('#loss .role-axis-label text')].map((text) => text.textContent).join()"
    before = browser.run(f"return {labels}")
    over_the_curve = ScrollOrigin.from_element(browser.driver.find_element(By.CSS_SELECTOR, "#loss svg"))
    ActionChains(browser.driver).scroll_from_origin(over_the_curve, 0, 100).perform()
    browser.wait("scrollY > 0")
    assert browser.run(f"return {labels}") == before
    browser.run("scrollTo(0, 0)")
    wheel = ActionChains(browser.driver).key_down(Keys.CONTROL).scroll_from_origin(over_the_curve, 0, -240)
    wheel.key_up(Keys.CONTROL).perform()
    browser.wait(f"{labels} !== {before!r}")
    assert browser.run("return scrollY") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(browser: Browser, project: Path, scheme: str) -> None:
    run(project, "dvc", "plots", "show")
    with browser.window(360, scheme=scheme):
        open_page(browser, project / "dvc_plots" / "index.html")
        assert browser.run("return document.documentElement.scrollWidth") <= 360
        brightness = "getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/)[0]"
        assert (int(browser.run(f"return {brightness}")) > 127) == (scheme == "light")
