"""The search with the real Optuna and the real queue of DVC: killed in the middle, stopped trials, and mistakes."""

import json
import shutil
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import optuna
import pytest
from imports import ROOT
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from projects import Project, wait_for

from lmcore.errors import LmcoreError, ParameterError
from lmcore.experiments.queue import find_attempt
from lmcore.experiments.search import read_question, search
from lmcore.runtime.process_pool import count_cores

RATE = "train.learning_rate=log(1e-4,1e-2)"
finished_once = pytest.mark.xdist_group("finished")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "reports" / "metrics").mkdir(parents=True)
    shutil.copy(ROOT / "reports" / "metrics" / "evaluate.json", tmp_path / "reports" / "metrics")
    return tmp_path


def test_what_is_searched_and_what_all_trials_share(folder: Path) -> None:
    settings = [
        RATE,
        "train.weight_decay=linear(0, 0.2)",
        "model.n_layers=linear(2,8)",
        "train.batch_size=choice(4,8,16)",
        "train.max_steps=200",
    ]
    question = read_question(settings, "evaluate.baselines.xz", folder)
    assert question.space == {
        "train.learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "train.weight_decay": FloatDistribution(0.0, 0.2),
        "model.n_layers": IntDistribution(2, 8),
        "train.batch_size": CategoricalDistribution(["4", "8", "16"]),
    }
    assert question.fixed == ["train.max_steps=200"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.learning_rat=log(1,2)", r"params.yaml has no train.learning_rat, did you mean train.learning_rate"),
        ("train.learning_rate=log(1e-2,1e-4)", r"the range is empty: the first number must be below the second"),
        ("train.learning_rate=log(0,1e-2)", r"the first number must be below the second and above 0"),
        ("train.learning_rate=linear(1,1)", r"the range is empty"),
        ("train.learning_rate=linear(0,inf)", r"both numbers must be finite"),
        ("train.learning_rate=log(1,2,3)", r"needs two numbers, the lowest and the highest"),
        ("train.learning_rate=linear(a,b)", r"needs two numbers"),
        ("train.batch_size=choice(4,4)", r"needs two values or more to choose from"),
        ("train.max_steps=200", r"nothing to search: give some -S 'NAME=log"),
    ],
)
def test_what_cannot_be_searched(folder: Path, setting: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        read_question([setting], "evaluate.val_loss", folder)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("bits_per_byte", r"must be STAGE.NAME as evaluate.bits_per_byte"),
        ("evaluat.val_loss", r"must be STAGE.NAME as evaluate.bits_per_byte, did you mean evaluate\?"),
        ("evaluate.bits_per_bite", r"evaluate measures no such thing, did you mean bits_per_byte"),
    ],
)
def test_what_is_not_measured(folder: Path, metric: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        read_question([RATE], metric, folder)


def test_a_name_that_no_file_can_have(folder: Path) -> None:
    with pytest.raises(ParameterError, match=r"--name a/b: must be of letters, digits"):
        list(search([RATE], "train.val_loss", folder, trials=1, jobs=1, name="a/b", seed=1))


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "lmcore.experiments.search")
    with pytest.raises(LmcoreError, match=r"the search needs Optuna: pip install -e '.\[search\]'"):
        import_module("lmcore.experiments.search")


def run(root: Path, settings: Sequence[str], trials: int = 4, metric: str = "train.val_loss") -> list[str]:
    return list(search(settings, metric, root, trials=trials, jobs=2, name="search", seed=1))


def open_study(project: Project) -> optuna.Study:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{project.folder}/runs/search.db")


@pytest.mark.slow
@finished_once
def test_killed_in_the_middle_it_goes_on(finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = finished.copy(tmp_path / "search")
    settings = [RATE, "train.max_steps=40"]
    options = [word for setting in settings for word in ("-S", setting)]
    command = ["env", "--unset=OMP_NUM_THREADS", "python", "-m", "lmcore", "search", *options]
    command += ["--metric", "train.val_loss", "--trials", "3", "--jobs", "2"]
    process = project.start(*command)
    wait_for(lambda: find_attempt(project.folder, "search-1").state in ("running", "ended"))
    process.send_signal(signal.SIGKILL)
    process.communicate()

    lines = project.run(*command).splitlines()
    names = set(project.run("dvc", "exp", "list", "--name-only").split())
    assert names == {"search-0", "search-1", "search-4"}, "the trials that were under way were followed, not run again"
    study = open_study(project)
    told = {trial.user_attrs["experiment"]: trial.value for trial in study.trials if trial.value is not None}
    for name in names:
        recorded = json.loads(project.run("git", "show", f"{reference(project, name)}:reports/metrics/train.json"))
        assert told[name] == recorded["val_loss"]
        assert recorded["steps"] == 40
    summaries = [json.loads(path.read_text()) for path in (project.folder / "runs").glob("*/summary.json")]
    threads = {summary["hardware"]["threads"] for summary in summaries if summary["seconds"]}
    assert threads == {1, max(1, count_cores() // 2)}, "the project's own repro had one thread, each trial its share"
    best = min(told, key=lambda name: told[name] or 0.0)
    assert lines[-2].startswith(f"best of 3: {best} (train.learning_rate=")
    assert project.status() == ""

    with pytest.raises(ParameterError, match=r"--name search: that search is another one \(settings was"):
        run(project.folder, [*settings, "train.warmup_steps=1"])
    monkeypatch.setenv("PATH", project.environment()["PATH"])
    assert run(project.folder, settings, trials=3)[0].startswith("best of 3")  # nothing is left to do
    project.run("dvc", "queue", "stop", "--kill")


def reference(project: Project, name: str) -> str:
    listed = project.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    return next(each for each in listed if each.endswith(f"/{name}"))


@pytest.mark.slow
@finished_once
def test_a_trial_worse_than_the_others_is_stopped_and_a_mistaken_one_fails(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "stopped")
    commit = project.run("git", "rev-parse", "HEAD").strip()
    settings = ["train.max_steps=30000", RATE, "train.eval_every=10"]
    (project.folder / "runs").mkdir(exist_ok=True)
    study = optuna.create_study(study_name="search", storage=f"sqlite:///{project.folder}/runs/search.db")
    asked = {"settings": settings, "metric": "train.val_loss", "commit": commit, "seed": 1}
    study.set_user_attr("question", asked)
    for _ in range(4):  # that had learnt all at once
        study.add_trial(
            optuna.create_trial(
                params={"train.learning_rate": 1e-3},
                distributions={"train.learning_rate": FloatDistribution(1e-4, 1e-2, log=True)},
                intermediate_values=dict.fromkeys(range(10, 30010, 10), 0.5),
                user_attrs={"experiment": "before"},
                value=0.5,
            )
        )
    options = [word for setting in settings for word in ("-S", setting)]
    command = ["python", "-m", "lmcore", "search", *options, "--metric", "train.val_loss"]
    lines = project.run(*command, "--trials", "5").splitlines()
    assert lines[0].startswith("search-4 (train.learning_rate=")
    assert "stopped after step " in lines[1]
    [run_folder] = [
        path.parent
        for path in (project.folder / "runs").glob("*/identity.json")
        if not (path.parent / "summary.json").exists()
    ]
    assert list((run_folder / "checkpoints").glob("step-*.json")), "it can go on from where it was stopped"

    wrong = ["python", "-m", "lmcore", "search", "-S", RATE, "-S", "train.max_steps=0", "--metric", "train.val_loss"]
    output = project.run(*wrong, "--trials", "1", "--name", "wrong", fails=True)
    assert "failed: error: train.max_steps=0: must be greater than or equal to 1" in output
    assert output.splitlines()[-1].startswith("error: no trial came to its end: `dvc queue status`")
    project.run("dvc", "queue", "stop", "--kill")
