"""MLflow's own page in a browser without a network: it lists tracked trainings and draws their curves."""

import json
from pathlib import Path

import pytest
from chromium import Browser, serve
from tracked import SETTINGS, make_params

from lmcore.tracking.description import TrackedRun
from lmcore.tracking.session import track_run

STEPS = 40
CORNERS = """Math.max(0, ...[...document.querySelectorAll('.scatterlayer path.js-line')]
    .map((line) => line.getAttribute('d').match(/,/g).length))"""

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Two trainings as the pipeline tracks them: MLflow's id by the run's key."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "config.json").write_text("{}")
    found = {}
    for seed, key in enumerate(("0123456789abcdef", "fedcba9876543210")):
        folder = tmp_path / "runs" / key
        folder.mkdir(parents=True)
        run = TrackedRun(folder, {"train": {"seed": seed}}, {"device": "cpu"}, {"tokenizer": "cd" * 32}, Path("models"))
        with track_run(run, SETTINGS, make_params()), (folder / "metrics.jsonl").open("w") as file:
            for step in range(1, STEPS + 1):
                machine = {"time": 1_700_000_000_000 + 1000 * step, "tokens_per_second": 900.0 + step}
                record = {"step": step, "train_loss": seed + step % 2, "machine": machine}
                file.write(json.dumps(record) + "\n")
        found[key] = json.loads((folder / "mlflow.json").read_text())["run_id"]
    return found


def test_runs_are_listed_and_curves_drawn(browser: Browser, tracked: dict[str, str], tmp_path: Path) -> None:
    """At the address that `make ui` prints, with the command that it runs, in the project's folder."""
    with serve(tmp_path, lambda port: ["mlflow", "ui", "--workers", "1", "--port", str(port)], "/health") as address:
        browser.open(f"{address}/#/experiments/1?workflowType=machine_learning")
        for key in tracked:
            browser.wait(f"document.body.innerText.includes({key!r})")
        browser.driver.get(f"{address}/#/experiments/1/runs/{tracked['fedcba9876543210']}/model-metrics")
        # A line with a corner at every step.
        browser.wait(f"{CORNERS} === {STEPS}")
        for name in ("train_loss", "tokens_per_second"):
            browser.wait(f"document.body.innerText.includes({name!r})")
        assert all(url.startswith(address) for url in browser.requests())
