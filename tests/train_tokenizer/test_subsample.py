"""Laws of the sample that a tokenizer is trained on."""

import random
from collections.abc import Iterable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.train_tokenizer import subsample as sample
from lmcore.train_tokenizer.subsample import sample_texts

TEXTS = [f"document {number} {random.Random(number).random()}" * 20 for number in range(4000)]
SIZE = sum(map(len, TEXTS))


def take(batches: Iterable[list[str]], size: int, limit: int | None) -> list[str]:
    """The chosen texts; each has its own name, and keeps it."""
    numbers = count()
    named = [[(f"{next(numbers)}.txt", text) for text in batch] for batch in batches]
    texts = dict(pair for batch in named for pair in batch)
    chosen = [pair for batch in sample_texts(named, size, limit) for pair in batch]
    assert all(text in texts[name] for name, text in chosen[:50])
    return [text for _, text in chosen]


@given(st.lists(st.lists(st.tuples(st.text(), st.text()))), st.none() | st.integers(100, 10**12))
def test_a_small_text_is_taken_whole(batches: list[list[tuple[str, str]]], limit: int | None) -> None:
    assert list(sample_texts(batches, min(100, limit or 100), limit)) == batches


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_it_has_about_the_size_that_was_asked(share: float) -> None:
    chosen = take([TEXTS], SIZE, int(share * SIZE))
    assert sum(map(len, chosen)) == pytest.approx(share * SIZE, rel=0.1 / share**0.5)
    assert set(chosen) <= set(TEXTS)


def test_batches_do_not_matter() -> None:
    one = take([TEXTS], SIZE, SIZE // 3)
    cut = [TEXTS[start : start + 7] for start in range(0, len(TEXTS), 7)]
    assert one == take(cut, SIZE, SIZE // 3)


@pytest.mark.parametrize("limit", [1, 40_000])
def test_equal_texts_are_sampled_too(limit: int) -> None:
    texts = ["same " * 20] * 4000
    chosen = take([texts], 400_000, limit)
    assert len(chosen) == pytest.approx(max(1, limit / 100), rel=0.2)


def test_a_larger_sample_holds_the_smaller_one() -> None:
    small, large = ({*take([TEXTS], SIZE, SIZE // n)} for n in (5, 2))
    assert small < large


def test_one_long_text_is_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "BLOCK_CHARACTERS", 50)
    whole = "".join(TEXTS)
    chosen = take([[whole]], SIZE, SIZE // 4)
    assert sum(map(len, chosen)) == pytest.approx(SIZE / 4, rel=0.05)
    assert all(block in whole for block in chosen[:50])
