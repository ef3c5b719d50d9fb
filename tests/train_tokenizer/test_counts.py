"""What is counted of a tokenizer's work: sums that agree, words counted by other means, a lost text by its name."""

import argparse
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.errors import ArtifactError, DataError
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokenizer.char import CharTokenizer
from lmcore.train_tokenizer import words as words_module
from lmcore.train_tokenizer.counts import count_tokens
from lmcore.train_tokenizer.words import WordCounter, find_costly_words

REAL_TEXT = Path(argparse.__file__).read_text(encoding="utf-8")
NAMED = [[("a.py", REAL_TEXT), ("b.txt", "émigré, the cat")], [("c.TXT:3", ""), ("d", "the cat sat\n")]]
TEXTS = [[text for _, text in batch] for batch in NAMED]
each_tokenizer = pytest.mark.parametrize(
    "tokenizer",
    [BpeTokenizer.train(TEXTS, 500).reserve(["<|user|>"]), CharTokenizer.train(TEXTS), ByteTokenizer.create()],
    ids=lambda tokenizer: tokenizer.kind,
)


def naming(batches: Iterable[list[str]]) -> list[list[tuple[str, str]]]:
    return [[("a.txt", text) for text in batch] for batch in batches]


def test_bytes_tokens_and_unused_entries() -> None:
    trained = BpeTokenizer.train([["abababab"]], 300)  # merges ab, abab, abababab
    assert trained.vocab_size == 260
    metrics = count_tokens(trained, naming([["abababab"]])).metrics
    assert metrics == {"vocab_size": 260, "bytes_per_token": 8.0, "unused_tokens": 2}
    assert list(metrics) == ["vocab_size", "bytes_per_token", "unused_tokens"]
    assert count_tokens(trained, naming([["abab"], ["ab"]])).metrics["bytes_per_token"] == 3.0
    assert count_tokens(ByteTokenizer.create().reserve(["<|user|>"]), naming(TEXTS)).metrics["unused_tokens"] == 0


@each_tokenizer
def test_types_sum_up_to_all(tokenizer: Tokenizer) -> None:
    counts = count_tokens(tokenizer, NAMED)
    assert {suffix: tally.texts for suffix, tally in counts.types.items()} == {".py": 1, ".txt": 2, "": 1}
    assert counts.total.texts == 4
    assert counts.total.bytes == sum(tally.bytes for tally in counts.types.values())
    assert counts.total.bytes == sum(len(text.encode()) for batch in TEXTS for text in batch)
    assert counts.total.tokens == sum(tally.tokens for tally in counts.types.values()) == counts.used.sum()
    assert counts.types[".py"].tokens == len(tokenizer.encode(REAL_TEXT))


@pytest.mark.parametrize("texts", [[], [[]], [[""]]])
def test_no_text_to_measure_is_a_data_error(texts: list[list[str]]) -> None:
    with pytest.raises(DataError, match="the train documents hold no text"):
        count_tokens(ByteTokenizer.create(), naming(texts))


class Forgetful(ByteTokenizer):
    """Loses one word."""

    def decode(self, ids: Iterable[int]) -> str:
        return super().decode(ids).replace("sat\n", "\n")


def test_a_text_that_is_lost_is_named() -> None:
    with pytest.raises(
        ArtifactError, match=r"^d: .* from character 8 on, '\\n' for 'sat\\n': choose another"
    ) as caught:
        count_tokens(Forgetful.create(), NAMED)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(st.sampled_from("ab_1é. \n(ß²"), max_size=40), max_size=5))
def test_words_are_those_that_the_text_is_split_into(texts: list[str]) -> None:
    counter, expected = WordCounter(), Counter[str]()
    for text in texts:
        counter.add(text)
        expected.update(word for word in re.split(r"\W+", text) if word and not word[0].isdecimal())
    found = Counter[str]()
    for word, count in counter.counts.items():
        found[re.sub(r"^\W", "", word)] += count
    assert found == expected


def test_rare_words_are_forgotten_and_frequent_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "MOST_WORDS", 100)
    counter = WordCounter()
    for number in range(2000):
        counter.add(f"often often word{number}")
        assert len(counter.counts) <= 100
    assert counter.counts["often"] == 2000
    assert counter.counts[" often"] == 2000


@each_tokenizer
def test_costly_words_are_the_first_of_all(tokenizer: Tokenizer) -> None:
    """By encoding each word of the text, where the report looks only as far as it must."""
    counter = WordCounter()
    counter.add(REAL_TEXT)
    costs = {}
    for word, count in counter.counts.items():
        sign = re.match(r"\W?", word).group()  # type: ignore[union-attr]
        alone = tokenizer.encode(word)
        joined = tokenizer.decode(tokenizer.encode(sign) + tokenizer.encode(word[len(sign) :])) == word and (
            tokenizer.encode(sign) == alone[: len(tokenizer.encode(sign))]
        )
        costs[word] = count * (len(alone) - (len(tokenizer.encode(sign)) if sign and joined else 0) - 1)
    ordered = sorted((word for word in costs if costs[word]), key=lambda word: (-costs[word], word))
    found = find_costly_words(tokenizer, counter, 25)
    assert [costly.word for costly in found] == ordered[:25]
    assert [costly.cost for costly in found] == [costs[word] for word in ordered[:25]]
    assert all(costly.word.endswith(b"".join(costly.pieces).decode()) for costly in found)
