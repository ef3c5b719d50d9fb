"""Comparisons of real DVC experiments and of MLflow runs, and each mistake that can be made in asking for one."""

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scipy.stats import ttest_ind

from lmcore.cli import main
from lmcore.experiments import experiments as stored_experiments
from lmcore.experiments.compare import compare_experiments
from lmcore.experiments.experiments import find_experiments

Call = Callable[..., tuple[int, str, str]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("experiments"),
    pytest.mark.filterwarnings("ignore"),  # MLflow's and its libraries' own
]


@pytest.fixture(autouse=True, scope="module")
def shown() -> Iterator[None]:
    """Each answer of DVC is asked for once, because it takes two seconds and the project stays as it is."""
    answers: dict[tuple[object, ...], str] = {}
    ask = stored_experiments.run_dvc

    def run_once(root: Path, *arguments: str) -> str:
        key = (root, *arguments)
        if key not in answers:
            answers[key] = ask(root, *arguments)
        return answers[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_experiments, "run_dvc", run_once)
        yield


@pytest.fixture
def call(stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`lmcore compare` in this process and a project's folder: exit status, output, errors."""

    def call(*arguments: str, folder: Path = stored) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.delenv("DVC_ROOT", raising=False)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.setattr(sys, "argv", ["lmcore", "compare", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = capsys.readouterr()
        return int(ended.value.code or 0), output, errors

    return call


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_commits_experiments_in_groups(call: Call) -> None:
    status, output, errors = call()
    assert (status, errors) == (0, "")
    head, slow, fast, empty, *notes = output.splitlines()
    assert head.split("  ")[0] == "train.learning_rate"
    assert head.split()[1:4] == ["experiments", "n", "evaluate.val_loss"]
    assert slow.split() == ["0.1", "slow-1", "+2", "3", "0.1200", "±", "0.0100", "baseline", "10,240"]
    # Means 0.12 and 0.315, variances 1e-4 and 5e-5: t = 0.195 / sqrt(1e-4 / 3 + 5e-5 / 2) = 25.53.
    expected = ttest_ind([0.31, 0.32], [0.11, 0.12, 0.13], equal_var=False)
    low, high = expected.confidence_interval()
    interval = f"({low:+.4f} to {high:+.4f})".split()
    assert fast.split() == [
        *("0.3", "fast-1", "+1", "2", "0.3150", "±", "0.0071", "+0.1950"),
        *(*interval, f"{expected.pvalue:.4f}", "*", "10,240"),
    ]
    assert empty == ""
    assert notes == [
        "differences are from slow-1",
        "±: standard deviation over n seeds; p: Welch's t test; * p < 0.05",
        "not finished, and not counted: broken (failed), waiting (queued)",
    ]


def test_both_stores_say_the_same(call: Call) -> None:
    names = ["slow-1", "slow-2", "slow-3", "fast-1", "fast-2"]
    _, from_dvc, errors = call(*names, "--format", "csv")
    _, from_mlflow, _ = call(*(f"mlflow:{name}" for name in names), "--format", "csv")
    _, of_experiment, complaint = call("lmcore", "--format", "csv")
    assert from_dvc == from_mlflow == of_experiment
    assert "not finished" not in errors
    assert "not finished, and not counted: killed (killed)" in complaint.splitlines()
    slow, fast = read_csv(from_dvc)
    assert slow["experiments"] == "slow-1 slow-2 slow-3"
    assert float(slow["evaluate.val_loss.mean"]) == pytest.approx(0.12)
    assert float(fast["evaluate.val_loss.difference"]) == pytest.approx(0.195)
    expected = ttest_ind([0.31, 0.32], [0.11, 0.12, 0.13], equal_var=False)
    assert float(fast["evaluate.val_loss.p"]) == pytest.approx(expected.pvalue)
    assert (slow["evaluate.val_loss.p"], fast["train.tokens.p"]) == ("", "")


def test_markdown(call: Call) -> None:
    _, output, _ = call("--format", "markdown", "--metric", "evaluate.val_loss")
    lines = output.splitlines()
    assert lines[0] == "| train.learning_rate | experiments | n | evaluate.val_loss | difference (95 %) | p |"
    assert lines[1] == "|---|---|---|---|---|---|"
    assert lines[2] == "| 0.1 | slow-1 +2 | 3 | 0.1200 ± 0.0100 | baseline |  |"
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[4] == ""
    assert all(line.startswith("- ") for line in lines[5:])


def test_another_baseline_and_another_order(call: Call) -> None:
    _, output, _ = call("--baseline", "fast-2", "--sort", "-evaluate.val_loss", "--format", "csv")
    fast, slow = read_csv(output)
    assert (fast["train.learning_rate"], fast["evaluate.val_loss.difference"]) == ("0.3", "")
    assert float(slow["evaluate.val_loss.difference"]) == pytest.approx(-0.195)
    _, output, _ = call("--sort", "train.learning_rate", "--format", "csv", "slow-1", "fast-1", "--baseline", "HEAD")
    assert [row["experiments"] for row in read_csv(output)] == ["HEAD", "fast-1"]


def test_one_seed_says_nothing(call: Call) -> None:
    _, output, _ = call("fast-1", "slow-1")
    fast, slow = output.splitlines()[1:3]
    assert fast.split() == ["0.3", "fast-1", "1", "0.310000", "baseline", "10,240"]
    assert slow.split() == ["0.1", "slow-1", "1", "0.110000", "-0.200000", "-", "10,240"]
    assert "one seed of fast-1, slow-1: nothing can be said about significance there" in output
    assert "Welch" not in output


def test_the_workspace_and_commits(call: Call) -> None:
    _, output, _ = call("workspace", "main", "slow-2", "--format", "csv")
    workspace, main = read_csv(output)
    assert workspace["commit"] == "workspace"
    assert (main["experiments"], main["evaluate.val_loss.n"]) == ("main slow-2", "2")


def test_a_seed_counts_once(call: Call) -> None:
    _, output, errors = call("slow-1", "slow-2", "mlflow:slow-2", "--format", "csv")
    assert read_csv(output)[0]["n"] == "2"
    assert "not counted, because their seed is in the group of slow-1 already: slow-2" in errors.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["slw-1"], "slw-1: did you mean slow-1"),
        (["mlflow:fast3"], "mlflow:fast3: did you mean"),
        (["--baseline", "what-ever-else"], "what-ever-else: no experiment, commit or MLflow run is called so"),
        (["--metric", "val_loss"], "--metric val_loss: no experiment has it, did you mean evaluate.val_loss?"),
        (["--metric", "train.token"], "--metric train.token: no experiment has it, did you mean train.tokens?"),
        (
            ["--metric", "zzz"],
            "--metric zzz: no experiment has it, there are evaluate.baselines.xz, evaluate.val_loss,",
        ),
        (["--metric", "train.dtype"], "--metric train.dtype: no experiment has it"),
        (["--sort", "train.seed"], "--sort train.seed: the table has no such column, "),
        (["--baseline", "broken"], "--baseline broken: it is failed, not finished: choose another one"),
        (
            ["broken", "waiting"],
            "none of the experiments has finished: broken is failed, waiting is queued; `dvc exp run",
        ),
    ],
)
def test_a_mistake_is_one_line(call: Call, arguments: list[str], message: str) -> None:
    status, output, errors = call(*arguments)
    assert (status, output) == (1, "")
    assert errors.startswith(f"error: {message}")
    assert len(errors.splitlines()) == 1


def test_projects_without_experiments(call: Call, tmp_path: Path, stored: Path) -> None:
    assert call(folder=tmp_path)[2].startswith(f"error: {tmp_path} has no git commit, and DVC keeps experiments in git")
    subprocess.run(["git", "clone", "--quiet", str(stored), str(tmp_path / "clone")], check=True)
    status, output, errors = call(folder=tmp_path / "clone")
    assert (status, output) == (1, "")
    assert errors.startswith(
        "error: the current commit has no experiments: `dvc exp run --queue -S train.seed=1,2,3` and"
    )
    assert call("lmcore", folder=tmp_path / "clone")[2].startswith("error: lmcore: no experiment, commit or MLflow run")
    assert not (tmp_path / "clone" / "mlflow.db").exists()
    (tmp_path / "clone").rename(tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / ".dvc")
    errors = call("main", folder=tmp_path / "bare")[2]
    assert errors.startswith(f"error: DVC cannot show the experiments of {tmp_path / 'bare'} (dvc exp show --json")
    assert ": you are not inside" in errors
    assert len(errors.splitlines()) == 1


def test_a_store_that_does_not_answer(call: Call, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmcore.tracking.store.tracking_uri", lambda: "http://127.0.0.1:9")
    status, _, errors = call("mlflow:slow-1")
    assert status == 1
    assert errors.startswith("error: MLflow at http://127.0.0.1:9 does not answer (")
    assert len(errors.splitlines()) == 1


def test_parameters_of_no_stage_do_not_part_groups(stored: Path) -> None:
    (experiment,) = find_experiments(["slow-1"], stored)
    assert set(experiment.params) == {"train.seed", "train.learning_rate", "train.max_steps", "sample.seed"}
    assert experiment.params["train.max_steps"] == "10"
    assert len(compare_experiments(["slow-1", "slow-2"], stored).groups) == 1


def test_files_of_a_project_in_a_folder_of_its_repository(tmp_path: Path) -> None:
    """`dvc init --subdir`: git's paths begin at its top, the project's at its own folder."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "metrics.json").write_text('{"loss": 1}\n')
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert stored_experiments.read_file("HEAD", "0" * 40, "metrics.json", project) == '{"loss": 1}'
