"""The learning rate against torch's own schedulers and at its corners, and how long a run is."""

from typing import Any

import pytest
import torch
from tiny import TINY_TRAIN

from lmcore.errors import ParameterError
from lmcore.params import parse_section
from lmcore.train.params import TrainParams
from lmcore.train.schedule import Schedule, plan_schedule

CONTEXT, TOKENS = 16, 1000  # tokens a window, and in the train split


def plan(**changes: Any) -> Schedule:
    params = parse_section(TrainParams, "train", {**TINY_TRAIN.model_dump(), "learning_rate": 1.0, **changes})
    return plan_schedule(params, CONTEXT, TOKENS)


def rates(**changes: Any) -> list[float]:
    schedule = plan(**changes)
    return [schedule.learning_rate(step) for step in range(schedule.steps)]


def test_the_docstring_example() -> None:
    scales = rates(warmup_steps=2, max_steps=5, min_learning_rate_ratio=0.0, schedule="linear")
    assert scales == [0.5, 1.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_against_torch(name: str) -> None:
    """Without warm-up, torch's scheduler after k steps is our factor of update k."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs: torch.optim.lr_scheduler.LRScheduler
    if name == "cosine":
        theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=29, eta_min=0.1)
    else:
        theirs = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=29)
    expected = []
    for _ in range(30):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    ours = rates(warmup_steps=0, max_steps=30, min_learning_rate_ratio=0.1, schedule=name)
    assert ours == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "wsd"])
def test_warm_up_rises_and_nothing_exceeds_the_peak(name: str) -> None:
    scales = rates(warmup_steps=10, max_steps=40, schedule=name)
    assert scales[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(scales) == 1.0
    assert scales[-1] == (1.0 if name == "constant" else pytest.approx(0.1))


def test_wsd_is_constant_and_then_a_line() -> None:
    scales = rates(warmup_steps=2, max_steps=10, schedule="wsd", decay_fraction=0.5, min_learning_rate_ratio=0.0)
    assert scales == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    assert plan(max_steps=10, schedule="wsd", decay_fraction=0.5).stable_end == 5


@pytest.mark.parametrize("name", ["constant", "wsd"])
def test_up_to_the_stable_end_a_longer_run_has_the_same_rates(name: str) -> None:
    short, long = plan(max_steps=20, schedule=name), plan(max_steps=50, schedule=name, decay_fraction=0.1)
    assert short.stable_end
    assert [short.learning_rate(step) for step in range(short.stable_end)] == [
        long.learning_rate(step) for step in range(short.stable_end)
    ]


def test_only_some_schedules_have_a_stable_phase() -> None:
    assert plan(schedule="cosine").stable_end is None
    assert plan(schedule="linear").stable_end is None
    assert plan(schedule="constant").stable_end == 12


def test_one_step_is_a_schedule_too() -> None:
    assert rates(warmup_steps=0, max_steps=1) == [1.0]
    assert rates(warmup_steps=1, max_steps=2)[0] == 1.0
    assert len(rates(warmup_steps=0, max_steps=1, schedule="wsd", decay_fraction=1.0)) == 1


@pytest.mark.parametrize(
    ("length", "steps"),
    [({"max_steps": 7}, 7), ({"max_tokens": 640}, 10), ({"max_tokens": 641}, 11), ({"epochs": 2.0}, 32)],
)
def test_the_length_is_given_in_one_of_three_ways(length: dict[str, Any], steps: int) -> None:
    assert plan(**{"max_steps": None, **length}).steps == steps  # 64 tokens a step


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ({"max_steps": None}, "none is set: exactly one of train.max_steps, train.max_tokens and train.epochs"),
        ({"epochs": 1.0}, "train.max_steps=12, train.epochs=1.0 set: exactly one of"),
        ({"warmup_steps": 12}, "train.warmup_steps=12: must be below the run's 12 steps"),
    ],
)
def test_a_length_that_is_none_is_refused(length: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        plan(**length)
