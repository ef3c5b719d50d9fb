"""Each of the published rules, broken alone by a text that keeps all others."""

import random
from itertools import count, cycle

import pytest

from lmcore.prepare.documents import Document
from lmcore.prepare.gopher import GOPHER, count_repeated, count_top, measure_gopher
from lmcore.prepare.quality import FILTERS
from lmcore.prepare.schema import build_schema, find_reasons

VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnprstvw"


def invent_words(number: int, seed: int = 1, length: int = 5) -> list[str]:
    """Words that hardly ever come in the same order twice."""
    source = random.Random(seed)
    return ["".join(source.choice((CONSONANTS, VOWELS)[at % 2]) for at in range(length)) for _ in range(number)]


def invent_prose(number: int = 400, seed: int = 1) -> str:
    """Lines of ten words, some of them English."""
    words = invent_words(number, seed)
    places = range(3, number, 40)
    for place, word in zip(places, cycle(["the", "of", "and"]), strict=False):
        words[place] = word
    return "\n".join(" ".join(words[start : start + 10]) for start in range(0, len(words), 10))


GOOD = invent_prose()
LINES = GOOD.splitlines()
TEN = " ".join(invent_words(10, seed=7))


def insert(piece: str, times: int, text: str = GOOD) -> str:
    """The piece as a part of so many lines, far from one another."""
    lines = text.splitlines()
    return "\n".join(f"{line} {piece}" if at < times else line for at, line in enumerate(lines))


BROKEN = {
    "words": " ".join(GOOD.split()[:49]),
    "mean_word_length": " ".join(invent_words(400, length=12)) + " the of and",
    "hashes_per_word": GOOD + " #" * 50,
    "ellipses_per_word": GOOD.replace(" ", "... ", 60),
    "bullet_lines": "\n".join(f"- {line}" for line in LINES),
    "ellipsis_lines": "\n".join(f"{line}..." if at % 3 else line for at, line in enumerate(LINES)),
    "alphabetic_words": " ".join(word if at % 4 else str(at * 7919) for at, word in enumerate(GOOD.split())),
    "stop_words": " ".join(word for word in GOOD.split() if word not in {"of", "and"}),
    "repeated_lines": "\n".join(line for at, line in enumerate(LINES) for line in (line, f"{at % 3}x")),
    "top_2_gram_characters": insert("whatever everyone", 40),
}


def reasons_of(text: str) -> str | None:
    quality = FILTERS["gopher"]
    (reason,) = find_reasons([Document.of("a", text)], build_schema(1, None, quality), quality)
    return reason


def broken_rules(text: str) -> set[str]:
    facts = measure_gopher(text)
    return {name for name, (least, greatest) in GOPHER.items() if not least <= facts[name] <= greatest}


def test_prose_passes() -> None:
    assert reasons_of(GOOD) is None
    assert measure_gopher(GOOD).keys() == GOPHER.keys()
    assert all(type(value) is float for value in measure_gopher(GOOD).values())


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_has_its_reason(rule: str) -> None:
    assert rule in broken_rules(BROKEN[rule])
    assert reasons_of(BROKEN[rule]) == f"quality_{next(name for name in GOPHER if name in broken_rules(BROKEN[rule]))}"


@pytest.mark.parametrize("rule", ["words", "mean_word_length", "hashes_per_word", "bullet_lines", "stop_words"])
def test_what_breaks_one_rule_breaks_no_other(rule: str) -> None:
    assert broken_rules(BROKEN[rule]) == {rule}


def test_shares_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GOPHER, "words", (0, 100))
    facts = measure_gopher("one line\n\none line\n\n- two # 12...\n\none line")
    assert facts["words"] == 10
    assert facts["hashes_per_word"] == facts["ellipses_per_word"] == 0.1
    assert facts["mean_word_length"] == 3.1
    assert facts["bullet_lines"] == facts["ellipsis_lines"] == 0.25
    assert facts["alphabetic_words"] == 0.7
    assert facts["repeated_lines"] == facts["repeated_paragraphs"] == 0.5
    assert facts["repeated_line_characters"] == pytest.approx(16 / 43)
    assert facts["top_2_gram_characters"] == pytest.approx(3 * 7 / 31)


def test_without_enough_words_only_they_are_counted() -> None:
    assert broken_rules("") == broken_rules("# " * 49) == {"words"}
    assert measure_gopher("a b")["words"] == 2


def test_the_limits_are_the_published_ones() -> None:
    greatest = {name: limit for name, (least, limit) in GOPHER.items() if least == 0}
    assert greatest == {
        "hashes_per_word": 0.1,
        "ellipses_per_word": 0.1,
        "bullet_lines": 0.9,
        "ellipsis_lines": 0.3,
        "repeated_lines": 0.3,
        "repeated_paragraphs": 0.3,
        "repeated_line_characters": 0.2,
        "repeated_paragraph_characters": 0.2,
        "top_2_gram_characters": 0.2,
        "top_3_gram_characters": 0.18,
        "top_4_gram_characters": 0.16,
        "repeated_5_gram_characters": 0.15,
        "repeated_6_gram_characters": 0.14,
        "repeated_7_gram_characters": 0.13,
        "repeated_8_gram_characters": 0.12,
        "repeated_9_gram_characters": 0.11,
        "repeated_10_gram_characters": 0.1,
    }
    assert GOPHER["words"] == (50, 100_000)
    assert (GOPHER["mean_word_length"], GOPHER["alphabetic_words"], GOPHER["stop_words"][0]) == ((3, 10), (0.8, 1), 2)


def test_paragraphs_are_the_same_with_any_line_ends() -> None:
    text = "\n\n".join([GOOD, "again", "again"])
    assert measure_gopher(text.replace("\n", "\r\n"))["repeated_paragraphs"] == pytest.approx(1 / 3)
    assert measure_gopher(text)["repeated_paragraphs"] == pytest.approx(1 / 3)


def test_repeated_words_are_counted_once_each() -> None:
    words = "a b c d e a b c d e a b c d e".split()
    assert count_repeated(words, [1] * 15, 5) == 10
    assert count_repeated("a a a a a a a".split(), [1] * 7, 5) == 6
    assert count_repeated("a b c".split(), [1] * 3, 5) == 0


def test_the_top_is_the_most_frequent_and_of_those_the_longest() -> None:
    assert count_top("a bb a bb cc dd cc dd x".split(), 2) == 8
    assert count_top("a b c d".split(), 2) == 0


def test_a_long_text_takes_a_moment_only() -> None:
    numbers = count()
    text = " ".join(f"word{next(numbers)} the of" for _ in range(60_000))
    assert "words" in broken_rules(text)
