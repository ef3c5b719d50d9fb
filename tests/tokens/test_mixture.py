"""Mixtures: exact shares over any stretch, each source's windows in its own order, no history."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Texts

from lmcore.encode.encode import encode_splits
from lmcore.encode.params import EncodeParams
from lmcore.errors import DataError, ParameterError
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokens.batches import Batches
from lmcore.tokens.mixture import BLOCK, Mixture
from lmcore.tokens.shards import TokenShards

all_weights = st.lists(st.sampled_from([1e-6, 0.001, 0.1, 0.3, 1, 1 / 3, 7, 1000]), min_size=1, max_size=12)
SIZES = {"a": 900, "b": 400, "c": 150}
CONTEXT = 8


@settings(deadline=None)
@given(weights=all_weights, blocks=st.integers(0, 10**9))
def test_shares_are_exact_at_the_end_of_every_block(weights: list[float], blocks: int) -> None:
    mixture = Mixture(weights, seed=1)
    before, after = mixture.count(blocks * BLOCK), mixture.count((blocks + 1) * BLOCK)
    assert sum(before) == blocks * BLOCK
    assert all(old <= new for old, new in zip(before, after, strict=True))
    wanted = [Fraction(repr(weight)) / sum(Fraction(repr(w)) for w in weights) * blocks * BLOCK for weight in weights]
    off = [abs(count - exact) for count, exact in zip(before, wanted, strict=True)]
    assert sum(sorted(off)[:-1]) <= Fraction(len(weights) - 1, 2)
    assert sorted(off)[-1] <= max(Fraction(1, 2), Fraction(len(weights) - 1, 2))


@settings(deadline=None, max_examples=50)
@given(weights=all_weights, first=st.integers(0, 10**12), count=st.integers(1, 3000))
def test_dealing_numbers_each_source_without_gaps_and_knows_no_history(
    weights: list[float], first: int, count: int
) -> None:
    mixture = Mixture(weights, seed=3)
    sources, numbers = mixture.deal(first, count)
    before, after = mixture.count(first), mixture.count(first + count)
    for source in range(len(weights)):
        assert numbers[sources == source].tolist() == list(range(before[source], after[source]))
    middle = count // 2
    again = Mixture(weights, seed=3).deal(first + middle, count - middle)
    assert np.array_equal(again, (sources[middle:], numbers[middle:]))


def test_sources_alternate_within_a_block() -> None:
    sources, _ = Mixture([0.7, 0.3], seed=0).deal(0, 4 * BLOCK)
    shares = [float((some == 1).mean()) for some in np.split(sources, 32)]
    assert 0.15 < min(shares) < 0.3 < max(shares) < 0.45
    assert Mixture([0.7, 0.3], seed=1).deal(0, BLOCK)[0].tolist() != sources[:BLOCK].tolist()
    assert Mixture([7, 3], seed=0).deal(0, BLOCK)[0].tolist() == sources[:BLOCK].tolist()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    """Three sources of one letter each, in documents of ten, nine of a window."""
    folder = tmp_path_factory.mktemp("mixture")
    parts = [Texts([[name * 9] * (size // 10)], name) for name, size in SIZES.items()]
    params = EncodeParams(shard_tokens=100, tokenized=None)
    encode_splits(params, {"train": parts}, ByteTokenizer.create(), folder / "tokens", scratch=folder / "scratch")
    return TokenShards.open(folder / "tokens", "train")


def starts(batches: Batches, steps: range) -> np.ndarray:
    at_once = batches._steps_at_once
    return np.concatenate([batches._starts_of(step // at_once)[step % at_once] for step in steps])


@pytest.mark.parametrize("mixture", [{"c": 0.2, "a": 0.8}, {"a": 1, "b": 1, "c": 1}, {"b": 5}])
@pytest.mark.parametrize("packing", ["stream", "document"])
def test_each_source_has_its_share_and_its_own_epochs(
    shards: TokenShards, mixture: dict[str, float], packing: str
) -> None:
    batches = Batches(shards, 4, CONTEXT, 1, packing=packing, jitter=False, mixture=mixture)
    found = starts(batches, range(1024))
    seen = 0
    for source in shards.sources:
        mine = found[(found >= source.begin) & (found < source.end)]
        seen += len(mine)
        assert len(mine) == round(4096 * mixture.get(source.name, 0) / sum(mixture.values()), 0) or source.name == "a"
        if source.name not in mixture:
            assert not len(mine)
            continue
        assert mine.max() + CONTEXT < source.end
        count = next(w.count for s, w in zip(batches.sources, batches.windows, strict=True) if s.name == source.name)
        epochs = [mine[begin : begin + count].tolist() for begin in range(0, len(mine) - count, count)]
        assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple(sorted(epochs[0]))}
        assert len(set(epochs[0])) == count
        assert all(one != other for one, other in pairwise(epochs))
    assert seen == 4096


def test_a_batch_does_not_depend_on_history(shards: TokenShards) -> None:
    steps = [10**9, 0, 5, 10**9]
    mixture = {"a": 0.5, "b": 0.5}
    batches = Batches(shards, 4, CONTEXT, 1, mixture=mixture)
    assert [batches.at(step).tolist() for step in steps] == [
        Batches(shards, 4, CONTEXT, 1, mixture=mixture).at(step).tolist() for step in steps
    ]
    wide = Batches(shards, 8, CONTEXT, 1, mixture=mixture)
    assert np.array_equal(wide.at(3), np.concatenate([batches.at(6), batches.at(7)]))


def test_no_window_crosses_into_another_source(shards: TokenShards) -> None:
    letters = {ord(name) for name in SIZES}
    for row in np.concatenate(
        [Batches(shards, 8, CONTEXT, 1, mixture={"a": 1, "c": 1}).at(step) for step in range(90)]
    ):
        assert len(set(row.tolist()) & letters) == 1


def test_the_start_says_who_has_what(shards: TokenShards) -> None:
    batches = Batches(shards, 4, CONTEXT, 1, mixture={"a": 3, "b": 1})
    left, a, b = batches.describe(steps=256)
    assert left == "train.mixture does not name c (149 tokens): not trained on"
    assert a == "source a: share 75.00%, 6,144 tokens, 6.83 passes over its 899"
    assert b == "source b: share 25.00%, 2,048 tokens, 5.13 passes over its 399"
    assert batches.tokens == 899 + 399
    assert not list(Batches(shards, 4, CONTEXT, 1).describe(steps=256))


def test_a_source_that_is_not_there_is_named_with_those_that_are(shards: TokenShards) -> None:
    with pytest.raises(ParameterError, match=r"^train\.mixture\.d=0\.3: the text has no such source: it has a, b, c$"):
        Batches(shards, 4, CONTEXT, 1, mixture={"a": 1, "d": 0.3})


def test_a_source_without_a_window_is_named(shards: TokenShards) -> None:
    with pytest.raises(DataError, match=r"the train split's source c has 149 tokens, fewer than one window of .*=150"):
        Batches(shards, 4, 150, 1, mixture={"a": 1, "c": 1})
