"""Choosing a token: against softmax, against transformers, and at the edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lmcore.errors import ParameterError
from lmcore.files import derive_seed
from lmcore.generate.params import SampleParams
from lmcore.generate.sampling import Sampling, choose, keep_min_p, keep_top_k, keep_top_p, penalise
from lmcore.params import parse_section

VALID = {
    "prompts": ["", "def"],
    "samples_per_prompt": 2,
    "max_new_tokens": 20,
    "temperature": 0.8,
    "top_k": None,
    "top_p": 0.95,
    "min_p": None,
    "repetition_penalty": 1.0,
    "stop": None,
    "draft_tokens": None,
    "decoder": "plain",
    "weights": "float32",
    "seed": 1,
}


def uniform(count: int, seed: int = 7) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(logits: Tensor, count: int, sampling: Sampling) -> Tensor:
    """How often each token comes in `count` draws from `logits` (V,), as shares (V,)."""
    tokens = choose(logits.expand(count, -1), sampling, uniform(count), [[]] * count)
    return torch.bincount(tokens, minlength=len(logits)) / count


def random_logits(rows: int = 16, width: int = 64) -> Tensor:
    return 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_softmax(temperature: float) -> None:
    logits, count = torch.randn(20, generator=torch.Generator().manual_seed(3)), 100_000
    expected = (logits / temperature).softmax(-1)
    seen = draw(logits, count, Sampling(temperature))
    chi_square = count * ((seen - expected) ** 2 / expected).sum()
    assert chi_square < 43.8  # the 0.1 % point of 19 degrees of freedom
    assert (seen - expected).abs().sum() / 2 < 0.01  # total variation


def test_draws_from_what_top_k_and_top_p_leave() -> None:
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    torch.testing.assert_close(
        draw(logits, 50_000, Sampling(top_k=2)), torch.tensor([2 / 3, 1 / 3, 0, 0]), atol=0.01, rtol=0
    )
    torch.testing.assert_close(
        draw(logits, 50_000, Sampling(top_p=0.8)), torch.tensor([5 / 9, 2.5 / 9, 1.5 / 9, 0]), atol=0.01, rtol=0
    )
    # top-p looks at what top-k left: 2/3 is already over 0.6.
    assert draw(logits, 100, Sampling(top_k=2, top_p=0.6)).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("k", [1, 2, 10, 64, 1000])
def test_top_k_is_transformers(k: int) -> None:
    logits = random_logits()
    assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits))


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_is_transformers(p: float) -> None:
    logits = random_logits()
    assert torch.equal(keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("p", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_min_p_is_transformers(p: float) -> None:
    logits = random_logits()
    assert torch.equal(keep_min_p(logits, p), MinPLogitsWarper(p)(None, logits))


def test_limits_that_limit_nothing_change_nothing() -> None:
    logits = random_logits()
    assert torch.equal(keep_top_k(logits, logits.shape[1]), logits)
    assert torch.equal(keep_top_p(logits, 1.0), logits)
    assert torch.equal(keep_min_p(logits, 0.0), logits)


@given(
    scale=st.floats(0, 1e6, width=32), temperature=st.floats(min_value=0, max_value=1e300), seed=st.integers(0, 1 << 32)
)
@settings(deadline=None, max_examples=50)
def test_any_temperature_draws_a_token_that_is_left(scale: float, temperature: float, seed: int) -> None:
    logits = torch.tensor([[scale, -2 * scale, -torch.inf, 0.5 * scale]])
    token = int(choose(logits, Sampling(temperature, top_p=0.9, min_p=0.1), uniform(1, seed), [[]]))
    assert logits[0, token] > -torch.inf


@pytest.mark.parametrize(
    "sampling", [Sampling(0.0), Sampling(5e-324), Sampling(top_k=1), Sampling(top_p=1e-12), Sampling(min_p=1.0)]
)
def test_greedy_in_five_ways(sampling: Sampling) -> None:
    logits = random_logits().float()
    tokens = choose(logits, sampling, uniform(16), [[]] * 16)
    assert torch.equal(tokens, logits.argmax(-1))


def test_a_row_draws_the_same_alone_and_among_others() -> None:
    logits, draws = random_logits(), uniform(16)
    sampling = Sampling(top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.5)
    texts = [list(range(row)) for row in range(16)]
    together = choose(logits, sampling, draws, texts)
    alone = [int(choose(logits[row][None], sampling, draws[row][None], [texts[row]])) for row in range(16)]
    assert together.tolist() == alone


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 10.0])
def test_the_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = random_logits()
    texts = torch.randint(64, (16, 30), generator=torch.Generator().manual_seed(1))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(texts, logits.clone())
    assert torch.equal(penalise(logits, penalty, texts.tolist()), expected)
    assert torch.equal(penalise(logits, penalty, [[]] * 16), logits)


def test_seeds_differ_in_every_part() -> None:
    seeds = {derive_seed(seed, prompt, sample) for seed in range(9) for prompt in ("", "a", "b") for sample in range(9)}
    assert len(seeds) == 9 * 3 * 9
    assert all(0 <= seed < 1 << 32 for seed in seeds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -0.1}, r"sample.temperature=-0.1: must be greater than or equal to 0"),
        ({"top_p": 0.0}, r"sample.top_p=0.0: must be greater than 0"),
        ({"top_p": 1.5}, r"sample.top_p=1.5: must be less than or equal to 1"),
        ({"min_p": 1.1}, r"sample.min_p=1.1: must be less than or equal to 1"),
        ({"repetition_penalty": 0}, r"sample.repetition_penalty=0: must be greater than or equal to 0.01"),
        ({"max_new_tokens": 1e10}, r"sample.max_new_tokens=10000000000(.0)?: must be less than or equal to 1000000"),
        ({"stop": [""]}, r"sample.stop: '' is in every text: leave it out"),
        ({"stop": "end"}, r"sample.stop='end': must be a list"),
        ({"draft_tokens": 0}, r"sample.draft_tokens=0: must be greater than or equal to 1"),
        ({"top_k": 0}, r"sample.top_k=0: must be greater than or equal to 1"),
        ({"max_new_tokens": 0}, r"sample.max_new_tokens=0: must be greater than or equal to 1"),
        ({"samples_per_prompt": 0}, r"sample.samples_per_prompt=0: must be greater than or equal to 1"),
        ({"prompts": []}, r"sample.prompts=\[\]: must hold a prompt"),
        ({"prompts": ["a", "b", "a"]}, r"'a' is there 2 times .* set sample.samples_per_prompt=2"),
        ({"prompts": [12]}, r"sample.prompts\[0\]=12: must be text"),
        ({"prompts": "def"}, r"sample.prompts='def': must be a list"),
        ({"temprature": 1.0}, r"did you mean sample.temperature\?"),
    ],
)
def test_a_broken_rule_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse_section(SampleParams, "sample", {**VALID, **change})


def test_empty_limits_and_whole_numbers_are_fine() -> None:
    params = parse_section(SampleParams, "sample", {**VALID, "temperature": 1, "top_k": 1e2, "top_p": None})
    assert (params.temperature, params.top_k, params.top_p) == (1.0, 100, None)
