"""Checkpoints come back exactly, and damaged ones are passed over."""

from pathlib import Path

import pytest
import torch
from tiny import TINY_MODEL, TINY_TRAIN

from lmcore.model.gpt import GPT
from lmcore.train.checkpoint import Checkpoints
from lmcore.train.optimizer import build_optimizer


def make_state(steps: int) -> tuple[GPT, torch.optim.Optimizer]:
    model = GPT(TINY_MODEL, 50, seed=1)
    optimizer = build_optimizer(model, TINY_TRAIN)
    text = torch.arange(34).view(2, 17)
    for _ in range(steps):
        model(text[:, :-1], text[:, 1:])[1].backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def assert_equal_state(left: tuple[GPT, torch.optim.Optimizer], right: tuple[GPT, torch.optim.Optimizer]) -> None:
    for (name, mine), theirs in zip(left[0].named_parameters(), right[0].parameters(), strict=True):
        assert torch.equal(mine, theirs), name
        state, other = left[1].state[mine], right[1].state[theirs]
        assert state.keys() == other.keys()
        assert all(torch.equal(state[key], other[key]) for key in state), name


def test_everything_comes_back(tmp_path: Path) -> None:
    saved, restored = make_state(3), make_state(0)
    Checkpoints(tmp_path, keep=2).save(3, *saved)
    assert Checkpoints(tmp_path, keep=2).restore(*restored) == 3
    assert_equal_state(saved, restored)


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10, 30):
        checkpoints.save(step, *make_state(1))
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["step-00000010", "step-00000030"]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "weights missing", "seal missing", "seal cut", "empty"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    good = make_state(2)
    checkpoints.save(2, *good)
    checkpoints.save(4, *make_state(4))
    weights, seal = tmp_path / "step-00000004.safetensors", tmp_path / "step-00000004.json"
    content = weights.read_bytes()
    match damage:
        case "cut":
            weights.write_bytes(content[: len(content) // 2])
        case "flipped":
            weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "weights missing":
            weights.unlink()
        case "seal missing":
            seal.unlink()
        case "seal cut":
            seal.write_text(seal.read_text()[:20])
        case "empty":
            weights.write_bytes(b"")
    restored = make_state(0)
    assert checkpoints.restore(*restored) == 2
    assert_equal_state(good, restored)
    assert ("passed over" in capsys.readouterr().err) == (damage != "seal missing")


def test_nothing_to_restore(tmp_path: Path) -> None:
    state = make_state(0)
    assert Checkpoints(tmp_path / "none", keep=1).restore(*state) == 0
    assert_equal_state(state, make_state(0))
