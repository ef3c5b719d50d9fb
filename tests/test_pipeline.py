"""The whole pipeline with the real DVC in a clone of this checkout, on a tiny corpus: twice, changed, and killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML
from tiny import GPT2_MODEL, TINY_MODEL, make_texts

from lmcore.train.speed import SPEED_FILE

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[1]
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after its first `dvc repro`, committed."""
    project = Project(tmp_path_factory.mktemp("finished"))
    project.run("dvc", "repro")
    project.commit("results")
    return project


@finished_once
def test_every_stage_reports_and_the_numbers_agree(finished: Project) -> None:
    prepare, encode, train = (finished.metrics(stage) for stage in ("prepare", "encode", "train"))
    assert prepare["documents"] == prepare["kept"] + sum(prepare["rejected"].values()) + prepare["duplicates"]
    assert finished.metrics("download")["bytes"] == prepare["train_bytes"] + prepare["validation_bytes"]
    text_bytes = prepare["train_bytes"] + prepare["validation_bytes"]
    separators = prepare["train_documents"] + prepare["validation_documents"] - 2
    tokens = encode["train_tokens"] + encode["validation_tokens"] - separators
    assert encode["bytes_per_token"] == pytest.approx(text_bytes / tokens, rel=0.02)
    assert train["steps"] == 12
    assert finished.metrics("evaluate")["bytes"] == prepare["validation_bytes"]
    assert finished.metrics("sample")["samples"] == 4
    assert finished.metrics("export")["max_abs_logit_difference"] < 1e-4


@finished_once
def test_the_second_repro_does_nothing(finished: Project) -> None:
    assert finished.status() == ""
    assert "up to date" in finished.run("dvc", "repro")
    assert finished.status() == ""


@finished_once
def test_a_second_clone_makes_the_same_bytes(finished: Project, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    finished.run("git", "clone", "--quiet", str(finished.folder), str(clone))
    project = Project.__new__(Project)
    project.folder = clone
    project.run("dvc", "repro")
    assert project.status() == ""
    assert project.contents(*OUTPUTS) == finished.contents(*OUTPUTS)


@finished_once
def test_dvc_shows_what_a_user_asks_for(finished: Project) -> None:
    for stage in ("download", "prepare", "train_tokenizer", "encode", "train", "evaluate", "sample", "export"):
        assert stage in finished.run("dvc", "dag")
    assert "bits_per_byte" in finished.run("dvc", "metrics", "show")
    finished.run("dvc", "plots", "show", "--out", "dvc_plots")
    page = (finished.folder / "dvc_plots" / "index.html").read_text()
    for title in ("Training and validation loss", "Tokens per second of the latest trainings here"):
        assert title in page
    assert "train.batch_size" in finished.run("dvc", "exp", "show", "--csv")


@finished_once
def test_the_run_is_in_mlflow(finished: Project) -> None:
    code = (
        "from mlflow import MlflowClient; c = MlflowClient('sqlite:///mlflow.db');"
        "r, = c.search_runs([c.get_experiment_by_name('lmcore').experiment_id]);"
        "print(r.info.status, r.data.metrics['val_loss'], len(c.list_artifacts(r.info.run_id, 'model')))"
    )
    status, val_loss, artifacts = finished.run("python", "-W", "ignore", "-c", code).split()[-3:]
    assert status == "FINISHED"
    assert float(val_loss) == pytest.approx(finished.metrics("train")["val_loss"], abs=1e-5)
    assert int(artifacts) == 4


@finished_once
def test_experiments_run_only_what_they_change(finished: Project) -> None:
    weights = finished.contents("models/gpt")
    output = finished.run("dvc", "exp", "run", "-S", "sample.temperature=0.5")
    assert "Running stage 'sample'" in output
    assert "Running stage 'train'" not in output
    assert finished.contents("models/gpt") == weights

    output = finished.run("dvc", "exp", "run", "-S", "train.batch_size=8", "-S", "train.learning_rate=6e-05")
    assert "Running stage 'train'" in output
    assert "Running stage 'encode'" not in output
    assert finished.metrics("train")["tokens"] == 12 * 8 * 16
    assert finished.contents("models/gpt") != weights
    # The table of speeds has both trainings, and git does not see it.
    speeds = (finished.folder / SPEED_FILE).read_text().splitlines()[1:]
    assert len({line.rpartition(",")[2] for line in speeds}) == 2
    assert SPEED_FILE not in finished.status()
    finished.run("git", "checkout", "--quiet", "--", ".")
    finished.run("dvc", "checkout", "--quiet")
    assert finished.contents("models/gpt") == weights


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


@pytest.mark.parametrize("victim", ["trainer", "dvc"])
def test_killed_in_training_it_goes_on_bit_for_bit(tmp_path: Path, victim: str) -> None:
    # After the stop there are seconds of training left: the trainer looks for its DVC a few times in each.
    often = {"log_every": 20, "eval_every": 100, "checkpoint_every_steps": 50}
    sections = {**SMALL, "train": {**SMALL["train"], **often, "max_steps": 400}}
    whole, killed = Project(tmp_path / "whole", sections), Project(tmp_path / "killed", sections)
    whole.run("dvc", "repro", "train")

    # The second of the checkpoints, at steps 50, 100, ..., is not yet sealed. The writing thread stands still, and
    # with it, after a moment, the whole process: it goes on from step 50, or from a later one.
    process = killed.start("dvc", "repro", "train", sabotage="stages.train STOP os.rename step-00000100.json 1")
    trainer = wait_for(lambda: find_stopped_child(process, "stages.train"))
    if victim == "trainer":
        os.kill(trainer, signal.SIGKILL)
    else:
        process.kill()
        process.wait()
        os.kill(trainer, signal.SIGCONT)  # and it notices, saves and leaves
    output, _ = process.communicate()
    assert process.returncode != 0, output
    wait_for(lambda: not psutil.pid_exists(trainer))
    assert not (killed.folder / "models" / "gpt").exists()

    assert "going on from step" in killed.run("dvc", "repro", "train")
    assert killed.contents("models/gpt", "reports", "dvc.lock") == whole.contents("models/gpt", "reports", "dvc.lock")


@finished_once
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"batch_sise": 8}}, "train.batch_sise=8: unknown key, did you mean train.batch_size?"),
        ({"train": {"max_steps": 2.5}}, "train.max_steps=2.5: must be"),
        ({"model": {"n_heads": 5}}, "model.d_model=32: must be divisible by model.n_heads=5"),
        ({"model": {"context_length": 100_000}}, "context_length"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    finished: Project, tmp_path: Path, change: dict[str, dict[str, Any]], message: str
) -> None:
    project = tmp_path / "mistaken"
    shutil.copytree(finished.folder, project, symlinks=True)
    mistaken = Project.__new__(Project)
    mistaken.folder = project
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    for section, values in change.items():
        params[section].update(values)
    yaml.dump(params, project / "params.yaml")
    before = mistaken.contents("models", "reports")
    output = mistaken.run("python", "-m", "stages.train", fails=True)
    assert output.splitlines()[-1].startswith("error: ")
    assert message in output
    assert "Traceback" not in output
    assert mistaken.contents("models", "reports") == before


def test_blocks_of_gpt2_and_documents_apart_go_the_whole_way(tmp_path: Path) -> None:
    model = GPT2_MODEL.model_copy(update={"document_mask": True}).model_dump()
    project = Project(tmp_path, {**SMALL, "model": model, "train_tokenizer": {"kind": "char"}})
    project.run("dvc", "repro")
    assert project.metrics("export")["architecture"] == "GPT2LMHeadModel"
    assert project.metrics("export")["max_abs_logit_difference"] < 1e-4
