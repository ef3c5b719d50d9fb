"""Every way of attention computes the same, forward and backward."""

import pytest
import torch

from lmcore.model import attention
from lmcore.model.attention import attend


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("time", [2, 63, 128, 200, 256])
def test_blocks_are_torchs_attention(monkeypatch: pytest.MonkeyPatch, time: int, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, 4, time, 8, generator=generator, requires_grad=True)
    key, value = (torch.randn(2, kv_heads, time, 8, generator=generator, requires_grad=True) for _ in range(2))
    weights = torch.randn(2, 4, time, 8, generator=generator)
    results = []
    for blocked in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda blocked=blocked: blocked)
        mixed = attend(query, key, value)
        results.append((mixed, *torch.autograd.grad((mixed * weights).sum(), (query, key, value))))
    assert results[0][0].grad_fn is not None
    assert results[0][0].grad_fn.name() != results[1][0].grad_fn.name()  # they did go different ways
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("time", [1, 513, 1024])
def test_other_lengths_take_torchs(monkeypatch: pytest.MonkeyPatch, time: int) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(attention, "_attend_in_blocks", lambda *_: pytest.fail("blocks"))
    heads = torch.randn(1, 2, time, 8)
    assert attend(heads, heads, heads).shape == heads.shape
