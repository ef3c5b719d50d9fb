"""Laws of training: how a batch is cut does not matter, how often it was interrupted neither."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import GPT2_MODEL, TINY_MODEL, TINY_TRAIN
from training import KilledError, Training

from lmcore.evaluate.loss import measure_loss
from lmcore.model.save_load import load_model
from lmcore.tokens.dataset import TokenDataset
from lmcore.train.loss import LanguageModelLoss
from lmcore.train.nan_guard import TrainingError, report_spike


@pytest.fixture
def training(tmp_path: Path, dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> Training:
    return Training(tmp_path / "project", dataset, monkeypatch)


@pytest.fixture
def other(tmp_path: Path, dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> Training:
    return Training(tmp_path / "other", dataset, monkeypatch)


def read_outputs(training: Training) -> dict[str, bytes]:
    """The files of models/gpt and reports/ by name."""
    paths = [*training.folder.glob("models/gpt/*"), *training.folder.glob("reports/**/*.*")]
    return {str(path.relative_to(training.folder)): path.read_bytes() for path in paths}


def test_it_learns_and_writes_what_the_design_names(training: Training) -> None:
    training.run()
    first, last = training.steps()[0], training.steps()[-1]
    assert last["val_loss"] < first["train_loss"] - 0.5
    assert sorted(read_outputs(training)) == [
        "models/gpt/config.json",
        "models/gpt/lineage.json",
        "models/gpt/model.safetensors",
        "models/gpt/tokenizer.json",
        "reports/metrics/train.json",
        "reports/plots/training.csv",
        "reports/plots/training.svg",
    ]
    metrics = json.loads((training.folder / "reports/metrics/train.json").read_text())
    assert list(metrics) == ["steps", "tokens", "train_loss", "val_loss", "bits_per_byte"]
    assert (metrics["steps"], metrics["tokens"]) == (12, 12 * 4 * 16)
    summary = json.loads((training.run_folder / "summary.json").read_text())
    assert {"seconds", "tokens_per_second", "peak_memory_bytes", "hardware"} == set(summary)


@pytest.mark.parametrize("micro_batch_size", [3, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 2, 4))])
def test_the_micro_batch_does_not_change_the_result(training: Training, other: Training, micro_batch_size: int) -> None:
    params = TINY_TRAIN.model_copy(update={"batch_size": 8, "max_steps": 50, "learning_rate": 0.003})
    training.run(params=params, micro_batch_size=8)
    other.run(params=params, micro_batch_size=micro_batch_size)
    assert len(training.steps()) == 50
    for whole, cut in zip(training.steps(), other.steps(), strict=True):
        assert cut["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-5)


def test_two_runs_are_equal_byte_for_byte(training: Training, other: Training) -> None:
    training.run()
    torch.rand(5)  # whatever the process did before
    other.run()
    assert read_outputs(training) == read_outputs(other)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("death", [1, 2, 3])
def test_an_interrupted_run_goes_on_bit_for_bit(
    training: Training, other: Training, death: int, dropout: float
) -> None:
    model_params = GPT2_MODEL.model_copy(update={"dropout": dropout})
    training.run(model_params=model_params)
    with pytest.raises(KilledError):
        other.run(model_params=model_params, die_at_validation=death)
    assert not (other.folder / "models").exists()
    assert not (other.folder / "reports").exists()
    other.run(model_params=model_params)
    assert read_outputs(training) == read_outputs(other)
    assert training.steps() == other.steps()


def test_with_a_document_mask_it_goes_on_and_is_validated_with_it(training: Training, other: Training) -> None:
    """The tiny documents are longer than a window of 16 tokens: a longer one sees where they end."""
    masked = TINY_MODEL.model_copy(update={"document_mask": True, "context_length": 256})
    training.run(model_params=masked)
    with pytest.raises(KilledError):
        other.run(model_params=masked, die_at_validation=2)
    other.run(model_params=masked)
    assert read_outputs(training) == read_outputs(other)
    model = load_model(training.folder / "models" / "gpt")
    validation, lengths = training.dataset.validation, training.dataset.tokenizer.byte_lengths
    losses = [measure_loss(model, validation, lengths, TINY_TRAIN.eval_windows, 4).loss]
    model.params = masked.model_copy(update={"document_mask": False})
    losses.append(measure_loss(model, validation, lengths, TINY_TRAIN.eval_windows, 4).loss)
    assert training.steps()[-1]["val_loss"] == pytest.approx(losses[0], abs=1e-9)
    assert losses[1] != pytest.approx(losses[0], abs=1e-6)


def test_mixed_and_packed_at_documents_it_goes_on_bit_for_bit(training: Training, other: Training) -> None:
    params = TINY_TRAIN.model_copy(update={"mixture": {"text": 1.0}, "packing": "document"})
    whole = training.run(params=params).state_dict()
    with pytest.raises(KilledError):
        other.run(params=params, die_at_validation=2)
    resumed = other.run(params=params).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    metrics = json.loads((training.folder / "reports/metrics/train.json").read_text())
    assert 0 < metrics["lost_tokens"] < training.dataset.train.tokens
    assert training.steps() == other.steps()


def test_a_signal_saves_and_leaves_and_the_run_goes_on(training: Training, other: Training) -> None:
    training.run()
    with pytest.raises(SystemExit) as leaving:
        other.run(signal_at_validation=1)
    assert leaving.value.code == 128 + signal.SIGTERM
    assert (other.run_folder / "checkpoints" / "step-00000004.json").exists()
    other.run()
    assert read_outputs(training) == read_outputs(other)


def test_a_complete_run_asked_for_again_starts_afresh(training: Training) -> None:
    training.run()
    before, validations = read_outputs(training), training.validations
    training.run()
    assert training.validations == 2 * validations
    assert read_outputs(training) == before
    assert len(list((training.folder / "runs").glob("*.previous"))) == 1


def test_another_seed_is_another_run(training: Training, other: Training) -> None:
    training.run()
    other.run(params=TINY_TRAIN.model_copy(update={"seed": 8}))
    assert training.run_folder.name != other.run_folder.name
    assert training.steps()[-1]["val_loss"] != other.steps()[-1]["val_loss"]


class Poison:
    """Makes the loss of some steps NaN, and with it every gradient."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
        self.calls = 0
        score = LanguageModelLoss._score_whole

        def poisoned(objective: LanguageModelLoss, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
            self.calls += 1
            loss, each = score(objective, *given)
            return loss * (float("nan") if self.calls in steps else 1.0), each

        monkeypatch.setattr(LanguageModelLoss, "_score_whole", poisoned)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_update_that_is_not_finite_changes_nothing(
    training: Training, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], optimizer: str
) -> None:
    params = TINY_TRAIN.model_copy(update={"optimizer": optimizer, "max_skipped_steps": 1, "keep_checkpoints": 99})
    params = params.model_copy(update={"checkpoint_every_steps": 1})
    Poison(monkeypatch, 5)
    training.run(params=params)
    states = {
        step: load_file(training.run_folder / "checkpoints" / f"step-{step:08d}.safetensors") for step in (4, 5, 6)
    }
    assert states[4].keys() == states[5].keys()
    same = {name for name in states[4] if torch.equal(states[4][name], states[5][name])}
    assert states[4].keys() - same == {"skipped_steps"}
    assert not torch.equal(states[5]["model/token_embedding.weight"], states[6]["model/token_embedding.weight"])
    assert "step 5: 1 of at most 1 updates were not finite and not made" in capsys.readouterr().err


def test_too_many_of_them_stop_the_run(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    Poison(monkeypatch, 5, 6)
    params = TINY_TRAIN.model_copy(update={"max_skipped_steps": 1})
    with pytest.raises(
        TrainingError, match=r"step 6: 2 updates were not finite.*max_skipped_steps=1.*lower train.lear"
    ):
        training.run(params=params)
    assert not (training.folder / "models").exists()
    steps = {path.stem for path in (training.run_folder / "checkpoints").glob("*.json")}
    assert steps == {"step-00000003"}


def test_a_loss_that_jumps_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    usual = [{"step": step, "train_loss": 2.0 + 0.01 * (step % 3)} for step in range(40)]
    report_spike(usual, {"step": 40, "train_loss": 2.05})
    assert not capsys.readouterr().err
    report_spike(usual, {"step": 40, "train_loss": 3.0})
    assert "step 40: the loss rose to 3.0000" in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_muon_and_the_moving_average_survive_a_kill(training: Training, other: Training, optimizer: str) -> None:
    params = TINY_TRAIN.model_copy(update={"optimizer": optimizer, "ema_decay": 0.9, "schedule": "wsd"})
    training.run(params=params)
    with pytest.raises(KilledError):
        other.run(params=params, die_at_validation=2)
    other.run(params=params)
    assert read_outputs(training) == read_outputs(other)
    assert training.steps() == other.steps()


def test_a_longer_run_branches_off_bit_for_bit(
    training: Training, other: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    short = TINY_TRAIN.model_copy(update={"schedule": "wsd"})
    long = short.model_copy(update={"max_steps": 20})
    other.run(params=long)
    training.run(params=short)
    run = training.run_folder.name
    capsys.readouterr()
    training.run(params=long)
    assert f"branching off run {run}, which is the same up to step 6" in capsys.readouterr().out
    assert read_outputs(training) == read_outputs(other)
    (branch,) = (training.folder / "runs").glob("*/branch.json")
    assert json.loads(branch.read_text()) == {"run_key": run, "step": 6}


def test_a_cosine_run_has_no_trunk(training: Training, capsys: pytest.CaptureFixture[str]) -> None:
    training.run()
    training.run(params=TINY_TRAIN.model_copy(update={"max_steps": 20}))
    assert "branching" not in capsys.readouterr().out
