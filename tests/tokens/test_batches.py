"""Batches: every window once an epoch, and evaluation windows: every token once."""

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import encode_texts

from lmcore.errors import DataError
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokens.batches import Batches, fixed_windows
from lmcore.tokens.shards import TokenShards

TEXT = "".join(chr(0x100 + place) for place in range(1000))  # every character once: a token says where it was
RANKS = {bytes([byte]): byte for byte in range(256)} | {char.encode(): 256 + place for place, char in enumerate(TEXT)}
TOKENIZER = BpeTokenizer.from_ranks(RANKS, r"\p{L}|[^\p{L}]", 256 + len(TEXT))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches")


@cache
def open_shards(folder: Path, tokens: int, shard_tokens: int = 17) -> TokenShards:
    path = folder / f"{tokens}-{shard_tokens}"
    encode_texts(shard_tokens, {"train": [[TEXT[:tokens]]]}, TOKENIZER, path)
    shards = TokenShards.open(path, "train")
    assert shards.tokens == tokens
    return shards


def list_windows(batches: Batches, steps: range) -> list[tuple[int, ...]]:
    return [tuple(row) for step in steps for row in batches.at(step).tolist()]


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(1, 120),
    context=st.integers(1, 12),
    batch=st.integers(1, 9),
    seed=st.integers(0, 9),
    shard=st.integers(1, 50),
)
def test_every_epoch_is_every_window_once(
    folder: Path, tokens: int, context: int, batch: int, seed: int, shard: int
) -> None:
    tokens = max(tokens, context)
    shards = open_shards(folder, tokens, shard)
    batches = Batches(shards, batch, context, seed)
    stream = shards.read(0, len(shards)).tolist()
    count = tokens // context
    assert [windows.count for windows in batches.windows] == [count]
    seen = list_windows(batches, range(3 * count // batch + 1))  # three epochs, the batches straddling them
    for epoch in range(3):
        starts = sorted(stream.index(window[0]) for window in seen[epoch * count : (epoch + 1) * count])
        offset = starts[0] if count > 1 else 0
        assert 0 <= offset <= (context - 1 if epoch else 0)
        if count > 1:
            assert starts == [min(w * context + offset, tokens - context) for w in range(count)]
    assert all(window == tuple(stream[stream.index(window[0]) :][: context + 1]) for window in seen)


def test_a_batch_is_a_function_of_seed_and_step(folder: Path) -> None:
    shards = open_shards(folder, 1000)
    batches = Batches(shards, 4, 10, seed=1)
    steps = [7, 0, 10**12, 7]
    assert batches.at(7).shape == (4, 11)
    assert batches.at(7).dtype == np.int64
    assert batches.tokens_per_step == 40
    fresh = [Batches(shards, 4, 10, seed=1).at(step).tolist() for step in steps]
    assert [batches.at(step).tolist() for step in steps] == fresh
    assert Batches(shards, 4, 10, seed=2).at(7).tolist() != fresh[0]


def test_each_epoch_has_its_own_order_and_no_seed_has_another_s(folder: Path) -> None:
    shards = open_shards(folder, 1000)
    orders = {
        tuple(list_windows(Batches(shards, 20, 10, seed), range(5 * epoch, 5 * epoch + 5)))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_the_batch_size_does_not_change_the_order(folder: Path) -> None:
    shards = open_shards(folder, 1000)
    assert list_windows(Batches(shards, 6, 10, 1), range(40)) == list_windows(Batches(shards, 8, 10, 1), range(30))


def test_inputs_and_targets_are_one_apart(folder: Path) -> None:
    batch = Batches(open_shards(folder, 1000), 8, 16, 0).at(3)
    inside = batch[:, :-1] != TOKENIZER.end_of_text
    assert (batch[:, 1:] == batch[:, :-1] + 1)[inside].all()


def test_less_text_than_one_window_is_a_data_error(folder: Path) -> None:
    assert Batches(open_shards(folder, 20), 2, 20, 0).windows[0].count == 1
    with pytest.raises(
        DataError, match=r"the train split has 20 tokens, fewer than one window of model.context_length=21"
    ):
        Batches(open_shards(folder, 20), 2, 21, 0)


@settings(deadline=None, max_examples=60)
@given(tokens=st.integers(1, 120), context=st.integers(1, 30))
def test_fixed_windows_make_each_token_a_target_once(folder: Path, tokens: int, context: int) -> None:
    shards = open_shards(folder, tokens)
    windows = list(fixed_windows(shards, context, None))
    targets = np.concatenate([window[1:] for window in windows])
    assert targets.tolist() == shards.read(1, tokens).tolist()
    assert TOKENIZER.byte_lengths[targets].sum() == shards.bytes == len(TEXT[:tokens].encode())
    assert windows[0][0] == shards.end_of_text
    assert all(window[-1] == following[0] for window, following in pairwise(windows))
    assert {len(window) for window in windows[:-1]} <= {context + 1}
    assert 2 <= len(windows[-1]) <= context + 1


@settings(deadline=None, max_examples=60)
@given(tokens=st.integers(1, 120), context=st.integers(1, 30), count=st.integers(1, 200))
def test_some_fixed_windows_are_spread_evenly(folder: Path, tokens: int, context: int, count: int) -> None:
    shards = open_shards(folder, tokens)
    every = [tuple(window) for window in fixed_windows(shards, context, None)]
    chosen = [tuple(window) for window in fixed_windows(shards, context, count)]
    places = [every.index(window) for window in chosen]
    assert len(chosen) == min(count, len(every))
    gaps = np.diff([*places, len(every)])
    assert places[0] == 0
    assert gaps.max() - gaps.min() <= 1
    assert gaps.min() >= 1
