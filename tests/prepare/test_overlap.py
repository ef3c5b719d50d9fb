"""The measured overlap against plain sets of 13 words."""

import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.prepare import overlap
from lmcore.prepare.overlap import collect_sequences, hash_sequences, measure_overlaps, split_runs
from lmcore.runtime.process_pool import HERE


@dataclass(frozen=True)
class Part:
    texts: list[str]

    def read(self) -> Iterator[list[str]]:
        yield self.texts


def measure_leakage(validation: list[list[str]], train: list[list[str]]) -> float:
    with tempfile.TemporaryDirectory() as place:
        sequences = collect_sequences([*map(Part, validation)], HERE)
        samples = {"sought": sequences, "nothing": sequences[:0]}
        found = measure_overlaps(samples, [*map(Part, train)], Path(place), HERE)
        assert found["nothing"] == 0
        return found["sought"]


def collect_plainly(texts: list[str]) -> set[tuple[bytes, ...]]:
    found = set()
    for text in texts:
        words = text.encode().split()
        found |= {tuple(words[at : at + 13]) for at in range(len(words) - 12)}
    return found


def measure_plainly(validation: list[str], train: list[str]) -> float:
    wanted = collect_plainly(validation)
    return len(wanted & collect_plainly(train)) / len(wanted) if wanted else 0.0


def make_texts(seed: int, count: int, words: int, vocabulary: int = 2) -> list[str]:
    chance = random.Random(seed)
    blanks = [" ", "\n", "  ", "\r\n\t", "\x0c", "\v"]

    def write() -> str:
        return "".join(f"{'é' * chance.randrange(vocabulary)}w{chance.choice(blanks)}" for _ in range(words))

    return [chance.choice(["", " ", "\n"]) + write() for _ in range(count)]


@settings(deadline=None)
@given(st.integers(), st.integers(0, 8), st.integers(0, 60))
def test_it_is_the_share_of_common_sequences(seed, count, words):
    validation, train = make_texts(seed, 3, 40), make_texts(seed + 1, count, words)
    train += [validation[0][20:]]
    assert measure_leakage([validation], [train[:2], train[2:]]) == measure_plainly(validation, train)


def test_all_none_and_nothing_to_compare():
    text = " ".join(map(str, range(50)))
    assert measure_leakage([[text]], [["before\n" + text.replace(" ", "\n") + " after"]]) == 1.0
    assert measure_leakage([[text]], [[text[::-1]]]) == 0.0
    assert measure_leakage([["twelve words are not enough " * 2]], [["short"]]) == 0.0
    assert measure_leakage([[text]], []) == 0.0


def test_sequences_do_not_reach_across_documents():
    words = [str(number) for number in range(20)]
    assert measure_leakage([[" ".join(words)]], [[" ".join(words[:10]), " ".join(words[10:])]]) == 0.0


@pytest.mark.parametrize("characters", [1, 7, 100])
def test_a_long_text_in_runs_is_the_same_text(monkeypatch, characters):
    (text,) = make_texts(1, 1, 300, vocabulary=9)
    whole = sorted(hash_sequences(list(split_runs(text, 13)), 13))
    monkeypatch.setattr(overlap, "RUN_CHARACTERS", characters)
    runs = list(split_runs(text, 13))
    assert len(runs) > 5
    assert sorted(hash_sequences(runs, 13)) == whole
    assert len(whole) == 300 - 12


def test_a_text_without_blanks_costs_no_more_than_others():
    """A word may be as long as a document: it counts as one, and its length in arrays is not paid."""
    words = [f"word{number}" for number in range(20)]
    long = "é" * overlap.WORD_BYTES
    text, same, other = (" ".join([*words[:10], word, *words[10:]]) for word in (long, long, long[:-1] + "e"))
    assert max(map(len, split_runs(text, 13))) < overlap.WORD_BYTES
    assert measure_leakage([[text]], [["before " + same]]) == 1.0
    assert measure_leakage([[text]], [[other]]) == 0.0
    assert len(hash_sequences(list(split_runs(text, 13)), 13)) == 21 - 12


def test_hashes_are_the_same_everywhere():
    words = b"a b c d e f g h i j k l m"
    plain = sum(byte * overlap.BASE**place for place, byte in enumerate(words)) % 2**64
    hashes = hash_sequences([b"before " + words.replace(b" ", b"\n\t")], 13)
    assert hashes[1] == (plain ^ plain >> 32) * overlap.BASE % 2**64


def test_a_sample_of_a_large_text_is_fair(monkeypatch):
    validation = make_texts(1, 10, 3000, vocabulary=50)
    train = validation[:3] + make_texts(2, 10, 3000, vocabulary=50)
    exact = measure_leakage([validation], [train])
    monkeypatch.setattr(overlap, "SEQUENCE_SAMPLE", 2000)
    assert measure_leakage([validation], [train]) == pytest.approx(exact, abs=0.04)
    assert exact == pytest.approx(0.3, abs=0.001)
