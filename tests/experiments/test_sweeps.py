"""Sweeps with the real queue of DVC: two workers, one copy of the tokens, one MLflow store, the workspace untouched."""

import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest
from projects import OUTPUTS, Project, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("finished")]

TOKENS = "data/tokens/train-00000.npy"


def test_two_workers_run_a_sweep_over_rates_and_seeds(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "sweep")
    before = project.contents(*OUTPUTS)
    # Ranges leave their end out, as Python's do.
    project.run("dvc", "exp", "run", "--queue", "-S", "train.batch_size=range(4,13,4)", "--name", "size")
    queued = [line.split()[1] for line in project.run("dvc", "queue", "status").splitlines() if "Queued" in line]
    assert sorted(queued) == ["size-1", "size-2", "size-3"]
    project.run("dvc", "queue", "remove", "--queued")

    sweep = ("-S", "train.learning_rate=1e-3,3e-4", "-S", "train.seed=choice(1,2)", "--name", "rate", "train")
    project.run("dvc", "exp", "run", "--queue", *sweep)
    project.run("dvc", "queue", "start", "--jobs", "2")
    places: dict[Path, int] = {}  # of the tokens, in the copies that experiments run in

    def is_done() -> bool:
        for path in project.folder.glob(f".dvc/tmp/exps/tmp*/{TOKENS}"):
            with suppress(FileNotFoundError):  # a worker has just removed its copy
                places[path] = path.stat().st_ino
        return len(project.run("dvc", "exp", "list", "--name-only").split()) == 4

    wait_for(is_done)
    cached = {path.stat().st_ino for path in (project.folder / ".dvc" / "cache" / "files").rglob("*") if path.is_file()}
    assert len(places) >= 2
    assert len(set(places.values())) == 1, "all copies have the same file"
    assert set(places.values()) <= cached, "which is that of DVC's cache"

    wait_for(lambda: "Running" not in project.run("dvc", "queue", "status"))
    assert (project.status(), project.contents(*OUTPUTS)) == ("", before)
    shown = project.run("dvc", "exp", "show", "--csv")
    assert shown.count(",Success,Dvc-task,") == 4
    with sqlite3.connect(project.folder / "mlflow.db") as store:
        runs = dict(store.execute("select name, status from runs").fetchall())
    assert {name: runs[name] for name in sorted(runs) if name.startswith("rate-")} == {
        f"rate-{number}": "FINISHED" for number in (1, 2, 3, 4)
    }
    compared = project.run(
        "python",
        "-m",
        "lmcore",
        "compare",
        "--metric",
        "train.val_loss",
        "--plot",
        "rates.svg",
        "--curves",
        "curves.svg",
    )
    assert [line.split()[0] for line in compared.splitlines()[:3]] == ["train.learning_rate", "0.0003", "0.001"]
    assert "<!-- 0.0003 -->" in (project.folder / "rates.svg").read_text()
    assert "<!-- learning_rate 0.001 -->" in (project.folder / "curves.svg").read_text()
    project.run("dvc", "queue", "stop", "--kill")
