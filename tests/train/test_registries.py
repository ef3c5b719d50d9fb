"""A schedule and an optimizer that are added from outside train a model; the permitted values are the registries'."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tiny import TINY_MODEL, TINY_TRAIN
from torch import Tensor
from torch.optim import Optimizer
from training import Training, on_cpu

from lmcore.errors import ParameterError
from lmcore.params import parse_section
from lmcore.tokens.dataset import TokenDataset
from lmcore.train.memory import count_parameters, estimate_memory
from lmcore.train.optimizer import OPTIMIZERS, OptimizerKind, OptimizerParams
from lmcore.train.params import TrainParams
from lmcore.train.schedule import plan_schedule
from lmcore.train.schedule_shapes import SCHEDULES, ScheduleShape, end_before_decay


class SignDescent(Optimizer):
    """Moves each weight by the sign of its gradient; keeps nothing, and does not move when `found_inf` is 1."""

    found_inf: Tensor

    def __init__(self, weights: list[Tensor], lr: float) -> None:
        super().__init__(weights, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for weight in group["params"]:
                weight -= group["lr"] * (1 - self.found_inf) * weight.grad.sign()


def build_sign_descent(weights: Mapping[str, Tensor], params: OptimizerParams, _: torch.dtype) -> list[Optimizer]:
    return [SignDescent(list(weights.values()), params.learning_rate)]


@pytest.fixture
def extended(monkeypatch: pytest.MonkeyPatch) -> TrainParams:
    """The tiny training with both of the new kinds."""
    monkeypatch.setitem(SCHEDULES, "root", ScheduleShape(lambda progress: 1 - progress**0.5, end_before_decay))
    monkeypatch.setitem(OPTIMIZERS, "sign", OptimizerKind(build_sign_descent, matrix_state=0, other_state=0))
    values = {**TINY_TRAIN.model_dump(), "schedule": "root", "optimizer": "sign", "ema_decay": None}
    return parse_section(TrainParams, "train", values)


def test_new_kinds_train_a_model(
    extended: TrainParams, tmp_path: Path, dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path / "project", dataset, monkeypatch)
    training.run(params=extended)
    logged = [record for record in training.steps() if "train_loss" in record]
    assert logged[-1]["train_loss"] < logged[0]["train_loss"] - 1.0
    schedule = plan_schedule(extended, TINY_MODEL.context_length, dataset.train.tokens)
    assert [record["learning_rate"] for record in logged] == [
        schedule.learning_rate(int(record["step"]) - 1) for record in logged
    ]


def test_a_new_schedule_has_its_phases(extended: TrainParams) -> None:
    changes = {"max_steps": 10, "warmup_steps": 2, "learning_rate": 1.0, "min_learning_rate_ratio": 0.0}
    schedule = plan_schedule(extended.model_copy(update={**changes, "decay_fraction": 0.5}), 16, 0)
    assert schedule.stable_end == 5
    rates = [schedule.learning_rate(step) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5, 0])


def test_the_estimate_counts_the_state_of_a_new_optimizer(
    extended: TrainParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert estimate_memory(on_cpu(), extended, TINY_MODEL, 257).optimizer == 0
    monkeypatch.setitem(OPTIMIZERS, "sign", OPTIMIZERS["sign"]._replace(matrix_state=3, other_state=1))
    counts = count_parameters(TINY_MODEL, 257)
    expected = 4 * (3 * counts.matrices + counts.all - counts.matrices)
    assert estimate_memory(on_cpu(), extended, TINY_MODEL, 257).optimizer == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schedule": "cosin"},
            "train.schedule='cosin': must be 'cosine', 'wsd', 'linear' or 'constant', did you mean",
        ),
        ({"optimizer": "adam"}, r"train.optimizer='adam': must be 'adamw' or 'muon', did you mean adamw\?"),
        ({"optimizer": None}, "train.optimizer is empty: must be 'adamw' or 'muon'"),
    ],
)
def test_an_unknown_kind_is_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{message}"):
        parse_section(TrainParams, "train", {**TINY_TRAIN.model_dump(), **changes})


@pytest.mark.usefixtures("extended")
def test_messages_name_new_kinds() -> None:
    with pytest.raises(ParameterError, match=r"'adamw', 'muon' or 'sign', did you mean sign\?$"):
        parse_section(TrainParams, "train", {**TINY_TRAIN.model_dump(), "optimizer": "sgn"})
