"""Muon against torch's, which weights each optimizer has, and what a skipped step leaves."""

import pytest
import torch
from tiny import GPT2_MODEL, TINY_MODEL, TINY_TRAIN
from torch import Tensor, nn

from lmcore.model.gpt import GPT
from lmcore.train.muon import Muon, orthogonalise
from lmcore.train.optimizer import build_optimizers

SHAPES = [(24, 8), (8, 8), (8, 24), (24, 8), (8, 8)]


def make_weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(weights: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)


def test_muon_is_torchs() -> None:
    ours, theirs = make_weights(), make_weights()
    mine = Muon(ours, 0.02, 0.1, 0.95, torch.bfloat16)
    other = torch.optim.Muon(theirs, 0.02, 0.1, 0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for weights, optimizer in ((ours, mine), (theirs, other)):
            give_gradients(weights, step)
            optimizer.step()
        for left, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=2e-4)
    assert not torch.allclose(ours[0], make_weights()[0], atol=1e-2)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 24, 8), (2, 8, 24)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_a_step_with_found_inf_changes_nothing() -> None:
    weights = make_weights()
    optimizer = Muon(weights, 0.02, 0.1, 0.95, torch.float32)
    give_gradients(weights, 0)
    optimizer.step()
    before = [*(weight.detach().clone() for weight in weights)]
    momentum = [optimizer.state[weight]["momentum_buffer"].clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.full_like(weight, float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    for weight, old, kept in zip(weights, before, momentum, strict=True):
        assert torch.equal(weight, old)
        assert torch.equal(optimizer.state[weight]["momentum_buffer"], kept)
    optimizer.found_inf = torch.zeros(())
    give_gradients(weights, 1)
    optimizer.step()
    assert not torch.equal(weights[0], before[0])


@pytest.mark.parametrize("model_params", [TINY_MODEL, GPT2_MODEL])
def test_each_weight_has_one_optimizer_and_its_decay(model_params: object) -> None:
    model = GPT(model_params, 50, seed=1)
    names: dict[Tensor, str] = {weight: name for name, weight in model.named_parameters()}
    muon, adamw = build_optimizers(model, TINY_TRAIN.model_copy(update={"optimizer": "muon"}))
    assert isinstance(muon, Muon)
    (matrices,), (decayed, undecayed) = (
        [[names[weight] for weight in group["params"]] for group in optimizer.param_groups]
        for optimizer in (muon, adamw)
    )
    assert sorted(matrices + decayed + undecayed) == sorted(names.values())
    assert all(name.startswith("blocks.") and name.endswith(".weight") for name in matrices)
    assert {name.split(".")[0] for name in decayed} <= {"token_embedding", "position_embedding", "head"}
    assert all("norm" in name or name.endswith("bias") for name in undecayed)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.1, 0.0]
    (whole,) = build_optimizers(model, TINY_TRAIN)
    assert sum(len(group["params"]) for group in whole.param_groups) == len(names)
