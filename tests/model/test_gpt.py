"""Laws of the model: causality, the cache, the initialisation, rotary positions."""

import math
from itertools import accumulate

import pytest
import torch
from tiny import GPT2_MODEL, TINY_MODEL, disturb

from lmcore.model.gpt import GPT, rotary_tables, rotate
from lmcore.model.kv_cache import KeyValueCache
from lmcore.model.params import ModelParams

MODELS = {
    "modern": TINY_MODEL,
    "gpt2": GPT2_MODEL,
    "mixed": TINY_MODEL.model_copy(update={"norm": "layernorm", "mlp": "gelu", "qk_norm": False, "bias": True}),
    "wide heads": TINY_MODEL.model_copy(update={"d_head": 12, "norm_epsilon": 1e-3, "rope_base": 500.0, "bias": True}),
    "untied": GPT2_MODEL.model_copy(update={"tie_embeddings": False, "bias": False}),
}
MODELS |= {f"{name}, documents": MODELS[name].model_copy(update={"document_mask": True}) for name in ("modern", "gpt2")}
VOCABULARY = 50
END_OF_TEXT = 13  # `tokens` has some, in the middle and at the end


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> GPT:
    return disturb(GPT(MODELS[request.param], VOCABULARY, seed=3, end_of_text=END_OF_TEXT))


def tokens(batch: int, time: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(1))


def cache_for(model: GPT, batch: int) -> KeyValueCache:
    params = model.params
    return KeyValueCache(params.n_layers, batch, params.kv_heads, params.context_length, params.head_width)


def test_a_token_does_not_see_what_follows(model: GPT) -> None:
    text = tokens(2, 16)
    changed = text.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % VOCABULARY
    before, after = model(text)[0], model(changed)[0]
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("pieces", [[16], [1] * 16, [5, 1, 7, 3], [15, 1]])
def test_cached_equals_uncached(model: GPT, pieces: list[int]) -> None:
    text = tokens(3, 16)
    cache = cache_for(model, 3)
    starts = accumulate(pieces, initial=0)
    cached = [
        model(piece, cache=cache.extend([start] * 3, piece.shape[1]))[0]
        for start, piece in zip(starts, text.split(pieces, dim=1), strict=False)
    ]
    torch.testing.assert_close(torch.cat(cached, dim=1), model(text)[0], atol=1e-5, rtol=1e-5)


def test_what_lies_behind_is_written_over(model: GPT) -> None:
    text, other = tokens(1, 12), (tokens(1, 12) + 7) % VOCABULARY
    cache = cache_for(model, 1)
    model(torch.cat((text[:, :6], other[:, :4]), dim=1), cache=cache.extend([0], 10))
    continued = model(text[:, 6:], cache=cache.extend([6], 6))[0]
    torch.testing.assert_close(continued, model(text)[0][:, 6:], atol=1e-5, rtol=1e-5)


def test_loss_is_the_mean_cross_entropy(model: GPT) -> None:
    text = tokens(2, 9)
    logits, loss = model(text[:, :-1], text[:, 1:])
    by_hand = -logits.log_softmax(-1).gather(-1, text[:, 1:, None]).mean()
    torch.testing.assert_close(loss, by_hand)
    assert model(text)[1] is None


def test_initialisation_is_what_its_table_says() -> None:
    model = GPT(TINY_MODEL.model_copy(update={"d_model": 256, "n_layers": 8, "tie_embeddings": False}), 1000, seed=1)
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            assert torch.equal(weight, torch.ones_like(weight)), name
            continue
        expected = 0.02 / math.sqrt(16) if "projection" in name else 0.02
        assert weight.std().item() == pytest.approx(expected, rel=0.05), name
        assert abs(weight.mean().item()) < expected / 10, name


def test_a_new_model_knows_nothing_and_the_seed_is_all_that_matters() -> None:
    model = GPT(GPT2_MODEL, VOCABULARY, seed=4)
    text = tokens(8, 16)
    assert model(text[:, :-1], text[:, 1:])[1].item() == pytest.approx(math.log(VOCABULARY), rel=0.02)
    torch.rand(3)
    again, other = GPT(GPT2_MODEL, VOCABULARY, seed=4), GPT(GPT2_MODEL, VOCABULARY, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.token_embedding.weight, other.token_embedding.weight)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(2))

    def product(i: int, j: int) -> float:
        left, right = (rotary_tables(torch.tensor([place]), 8, 10_000.0) for place in (i, j))
        return (rotate(query, *left) * rotate(key, *right)).sum().item()

    assert product(3, 1) == pytest.approx(product(10, 8), abs=1e-5)
    assert product(0, 0) == pytest.approx((query * key).sum().item(), abs=1e-6)
    assert product(3, 1) != pytest.approx(product(4, 1), abs=1e-3)


def test_parameters_are_counted_once() -> None:
    tied, untied = (
        GPT(GPT2_MODEL.model_copy(update={"tie_embeddings": tie}), VOCABULARY).count_parameters()
        for tie in (True, False)
    )
    assert untied - tied == VOCABULARY * 32


def test_published_size_of_gpt2() -> None:
    """Radford et al. 2019 as released: 124,439,808 numbers, the tied head counted once."""
    small = GPT2_MODEL.model_copy(update={"n_layers": 12, "n_heads": 12, "d_model": 768, "context_length": 1024})
    with torch.device("meta"):
        assert GPT(small, 50257).count_parameters() == 124_439_808


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 5}, r"model.d_model=32: must be divisible by model.n_heads=5"),
        ({"n_kv_heads": 3}, r"model.n_heads=4: must be divisible by model.n_kv_heads=3"),
        ({"n_heads": 32, "n_kv_heads": None}, r"makes heads 1 wide: model.position=rope needs an even width"),
        ({"d_head": 5}, r"model.d_head=5: model.position=rope needs an even width"),
    ],
)
def test_impossible_shapes_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelParams.model_validate({**TINY_MODEL.model_dump(), **change})
