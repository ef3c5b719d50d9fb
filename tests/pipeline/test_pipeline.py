"""The whole pipeline with the real DVC in a clone of this checkout, on a tiny corpus: twice, changed, and killed."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from projects import OUTPUTS, SMALL, Project, find_stopped_child, finished_once, wait_for
from ruamel.yaml import YAML
from tiny import GPT2_MODEL

import stages.train
from lmcore.errors import LmcoreError
from lmcore.experiments.experiments import find_experiments


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
@pytest.mark.slow
def test_a_second_clone_makes_the_same_bytes(finished: Project, tmp_path: Path) -> None:
    project = finished.clone(tmp_path / "clone")
    project.run("dvc", "repro")
    assert project.status() == ""
    assert project.contents(*OUTPUTS) == finished.contents(*OUTPUTS)


@finished_once
@pytest.mark.slow
def test_dvc_shows_what_a_user_asks_for(finished: Project) -> None:
    shown = finished.run("dvc", "dag")
    for stage in ("download", "prepare", "train_tokenizer", "encode", "train", "evaluate", "sample", "export"):
        assert stage in shown
    assert "bits_per_byte" in finished.run("dvc", "metrics", "show")
    finished.run("dvc", "plots", "show", "--out", "dvc_plots")
    page = (finished.folder / "dvc_plots" / "index.html").read_text()
    assert "Training and validation loss" in page
    assert "train.batch_size" in finished.run("dvc", "exp", "show", "--csv")


@finished_once
@pytest.mark.filterwarnings("ignore")  # MLflow's and its libraries' own
def test_the_run_is_in_mlflow(finished: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.folder)
    client = MlflowClient("sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("lmcore")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val_loss"] == pytest.approx(finished.metrics("train")["val_loss"], abs=1e-5)
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id, "model")}
    assert {"model/MLmodel", "model/artifacts", "model/code"} <= artifacts


@finished_once
def test_its_commit_can_be_compared(finished: Project) -> None:
    (experiment,) = find_experiments(["main"], finished.folder)
    assert experiment.metrics["evaluate.val_loss"] == finished.metrics("evaluate")["val_loss"]
    assert experiment.params["train.max_steps"] == "12"


@finished_once
@pytest.mark.slow
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
    finished.run("git", "checkout", "--quiet", "--", ".")
    finished.run("dvc", "checkout", "--quiet")
    assert finished.contents("models/gpt") == weights


@pytest.mark.slow
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
    finished: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, dict[str, Any]],
    message: str,
) -> None:
    project = finished.copy(tmp_path / "mistaken")
    yaml = YAML()
    params = yaml.load(project.folder / "params.yaml")
    for section, values in change.items():
        params[section].update(values)
    yaml.dump(params, project.folder / "params.yaml")
    before = project.contents("models", "reports", "runs")
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(stages.train, "follow_parent", lambda: None)
    with pytest.raises(LmcoreError, match=re.escape(message)):
        stages.train.main()
    assert project.contents("models", "reports", "runs") == before


@pytest.mark.slow
def test_blocks_of_gpt2_and_documents_apart_go_the_whole_way(tmp_path: Path) -> None:
    model = GPT2_MODEL.model_copy(update={"document_mask": True}).model_dump()
    project = Project(tmp_path, {**SMALL, "model": model, "train_tokenizer": {"kind": "char"}})
    project.run("dvc", "repro")
    assert project.metrics("export")["architecture"] == "GPT2LMHeadModel"
    assert project.metrics("export")["max_abs_logit_difference"] < 1e-4


def read_samples(project: Project) -> list[dict[str, Any]]:
    """Return the samples without their log-probabilities, which are equal up to rounding only."""
    lines = (project.folder / "reports" / "samples" / "samples.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "logprob"} for line in lines]


@finished_once
@pytest.mark.slow
def test_masks_guess_the_whole_way(finished: Project, tmp_path: Path) -> None:
    """As the documentation has it: from parameters to samples that are the same ones with every decoder."""
    project = finished.copy(tmp_path / "masks")
    settings = ["-S", "model.diffusion.block_size=2", "-S", "model.diffusion.start_fraction=0.0"]
    project.run("dvc", "exp", "run", *settings, "-S", "sample.decoder=tidar")
    assert {"val_diffusion_loss_1", "val_diffusion_loss_2"} <= project.metrics("train").keys()
    guessed = project.metrics("sample")
    assert guessed["tokens"] == sum(tokens * guessed.get(f"forwards_of_{tokens}", 0) for tokens in (1, 2))
    samples = read_samples(project)
    assert project.metrics("export")["max_abs_logit_difference"] < 1e-4
    told = project.run("python", "-m", "lmcore", "sample", "--decoder", "tidar-one-forward")
    assert "the cat" in told
    project.run("dvc", "exp", "run", *settings, "-S", "sample.decoder=plain", "sample")
    assert read_samples(project) == samples
    refused = project.run("python", "-m", "lmcore", "sample", "--decoder", "tidar", "--draft-tokens", "3", fails=True)
    assert "error: sample.draft_tokens=3: sample.decoder=tidar has draft tokens of its own" in refused
