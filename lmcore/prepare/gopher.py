"""The published rules for web text that reads like prose: those of Gopher (Rae et al. 2021, arXiv:2112.11446, A.1.1).

Each rule is a fact of a text and the range in which it must lie; where it counts characters of words, blanks do not
count. The rules are made for natural language in English: of Python's standard library they leave next to nothing.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
BULLETS = ("•", "‣", "◦", "▪", "-", "*")
ELLIPSES = ("...", "…")
PARAGRAPH_END = re.compile(r"\r?\n[ \t]*\r?\n")

# The reason of refusal -> the least and the greatest value of the fact of that name.
GOPHER: dict[str, tuple[float, float]] = {
    "words": (50, 100_000),
    "mean_word_length": (3, 10),
    "hashes_per_word": (0, 0.1),
    "ellipses_per_word": (0, 0.1),
    "bullet_lines": (0, 0.9),
    "ellipsis_lines": (0, 0.3),
    "alphabetic_words": (0.8, 1),
    "stop_words": (2, len(STOP_WORDS)),
    "repeated_lines": (0, 0.3),
    "repeated_line_characters": (0, 0.2),
    "repeated_paragraphs": (0, 0.3),
    "repeated_paragraph_characters": (0, 0.2),
    **{f"top_{n}_gram_characters": (0, limit) for n, limit in ((2, 0.20), (3, 0.18), (4, 0.16))},
    **{
        f"repeated_{n}_gram_characters": (0, limit)
        for n, limit in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    },
}


def measure_gopher(text: str) -> dict[str, float]:
    """The facts that GOPHER bounds: counts, and shares of words, lines, paragraphs or characters.

    Of a text with too few or too many words only their number is counted: the rest would cost much and change nothing.
    """
    words = text.split()
    least, greatest = GOPHER["words"]
    if not least <= len(words) <= greatest:
        return {**{name: float(bound) for name, (bound, _) in GOPHER.items()}, "words": float(len(words))}
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    paragraphs = [paragraph.strip() for paragraph in PARAGRAPH_END.split(text) if paragraph.strip()]
    count, lengths = max(1, len(words)), [len(word) for word in words]
    characters = max(1, sum(lengths))
    facts = {
        "words": len(words),
        "mean_word_length": sum(lengths) / count,
        "hashes_per_word": text.count("#") / count,
        "ellipses_per_word": sum(map(text.count, ELLIPSES)) / count,
        "bullet_lines": share(line.startswith(BULLETS) for line in lines),
        "ellipsis_lines": share(line.endswith(ELLIPSES) for line in lines),
        "alphabetic_words": share(any(map(str.isalpha, word)) for word in words),
        "stop_words": len(STOP_WORDS.intersection(words)),
    }
    for name, units in (("line", lines), ("paragraph", paragraphs)):
        first = set(units)  # the others were there before
        facts[f"repeated_{name}s"] = (len(units) - len(first)) / max(1, len(units))
        facts[f"repeated_{name}_characters"] = (sum(map(len, units)) - sum(map(len, first))) / max(1, len(text))
    for n in (2, 3, 4):
        facts[f"top_{n}_gram_characters"] = count_top(words, n) / characters
    for n in range(5, 11):
        facts[f"repeated_{n}_gram_characters"] = count_repeated(words, lengths, n) / characters
    return {name: float(value) for name, value in facts.items()}


def share(outcomes: Iterable[bool]) -> float:
    """The share of true ones; 0 of none."""
    found = list(outcomes)
    return sum(found) / max(1, len(found))


def count_top(words: Sequence[str], n: int) -> int:
    """Characters in all occurrences of the most frequent n words in a row, the longest of those; 0 if none is twice."""
    grams = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    most = max(grams.values(), default=0)
    return max((most * sum(map(len, gram)) for gram, times in grams.items() if times == most > 1), default=0)


def count_repeated(words: Sequence[str], lengths: Sequence[int], n: int) -> int:
    """Characters of words that lie in some n words in a row which were there before, each word once."""
    seen: set[tuple[str, ...]] = set()
    counted, characters = 0, 0  # words before `counted` are done with
    for start in range(len(words) - n + 1):
        gram = tuple(words[start : start + n])
        if gram in seen:
            begin = max(start, counted)
            characters += sum(lengths[begin : start + n])
            counted = start + n
        seen.add(gram)
    return characters
