"""The loss in pieces is the loss of all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY_MODEL

from lmcore.model.gpt import GPT
from lmcore.train import loss
from lmcore.train.loss import LanguageModelLoss


@pytest.mark.parametrize("cap", [None, 0.5])
@pytest.mark.parametrize("tied", [True, False])
def test_in_pieces_or_whole(monkeypatch: pytest.MonkeyPatch, tied: bool, cap: float | None) -> None:
    model = GPT(TINY_MODEL.model_copy(update={"tie_embeddings": tied, "logit_softcap": cap}), 700, seed=1)
    tokens = torch.randint(700, (6, 17), generator=torch.Generator().manual_seed(2))
    results = []
    for limit in (1 << 40, 4 * 700 * 40):  # 96 rows in pieces of 40
        monkeypatch.setattr(loss, "WHOLE_LOGITS_BYTES", limit)
        model.zero_grad()
        value = LanguageModelLoss(model)(tokens[:, :-1], tokens[:, 1:]).total
        (3 * value).backward()
        results.append([value.detach(), *(weight.grad.clone() for weight in model.parameters())])
    assert not torch.equal(results[0][1], results[1][1])  # they did go different ways
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-6)
    logits, _ = model(tokens[:, :-1])
    assert results[0][0].item() == pytest.approx(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item())


def test_in_pieces_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT(TINY_MODEL, 700, seed=1)
    tokens = torch.randint(700, (6, 17), generator=torch.Generator().manual_seed(2))
    whole = LanguageModelLoss(model)(tokens[:, :-1], tokens[:, 1:]).total.item()
    monkeypatch.setattr(loss, "WHOLE_LOGITS_BYTES", 4 * 700 * 40)
    with torch.autocast("cpu", torch.bfloat16):
        value = LanguageModelLoss(model)(tokens[:, :-1], tokens[:, 1:]).total
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(whole, rel=2e-4)


def test_the_softcap_bounds_every_logit() -> None:
    model = GPT(TINY_MODEL.model_copy(update={"logit_softcap": 2.0}), 50, seed=1)
    with torch.no_grad():
        model.token_embedding.weight.mul_(300)
    tokens = torch.arange(16)[None]
    logits, value = model(tokens, tokens)
    assert 1.5 < logits.abs().max() <= 2.0
    assert LanguageModelLoss(model)(tokens, tokens).total.item() == pytest.approx(value.item())
