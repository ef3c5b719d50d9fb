"""The learning rate against torch's own schedulers and at its corners."""

import pytest
import torch
from tiny import TINY_TRAIN

from lmcore.train.schedule import scale_learning_rate
from lmcore.train.settings import TrainParams


def schedule(**changes: object) -> list[float]:
    params = TrainParams.model_validate({**TINY_TRAIN.model_dump(), **changes})
    return [scale_learning_rate(step, params) for step in range(params.max_steps)]


def test_the_docstring_example() -> None:
    scales = schedule(warmup_steps=2, max_steps=5, min_learning_rate_ratio=0.0, schedule="linear")
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
    ours = schedule(warmup_steps=0, max_steps=30, min_learning_rate_ratio=0.1, schedule=name)
    assert ours == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_warm_up_rises_and_nothing_exceeds_the_peak(name: str) -> None:
    scales = schedule(warmup_steps=10, max_steps=40, schedule=name)
    assert scales[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(scales) == 1.0
    assert scales[-1] == (1.0 if name == "constant" else pytest.approx(0.1))


def test_one_step_is_a_schedule_too() -> None:
    assert schedule(warmup_steps=0, max_steps=1) == [1.0]
    assert schedule(warmup_steps=1, max_steps=2)[0] == 1.0


def test_warm_up_must_end() -> None:
    with pytest.raises(ValueError, match=r"train.warmup_steps=12: must be below train.max_steps=12"):
        schedule(warmup_steps=12)
