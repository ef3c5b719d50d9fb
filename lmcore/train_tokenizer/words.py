"""The words of a text and how often each occurs, in memory that does not grow with the text."""

import re
from collections import Counter
from dataclasses import dataclass

from lmcore.tokenizer.base import Tokenizer

# Letters, digits and underscores, but no number, with the space or sign before them: byte-level vocabularies join both.
WORD = re.compile(r"[^\w\r\n]?\b[^\W\d]\w{0,63}")
BLOCK_CHARACTERS = 1 << 20  # looked at together; a word across the border is counted as two
MOST_WORDS = 1 << 18


class WordCounter:
    """How often each word occurs, of which 64 characters are looked at; ` open` and `.open` are two.

    Once there are more than MOST_WORDS different ones, those that were seen least often are forgotten, at least half
    of all. What is frequent stays; the same texts in the same order give the same counts.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, text: str) -> None:
        """Count the words of one more text."""
        for start in range(0, len(text), BLOCK_CHARACTERS):
            self.counts.update(WORD.findall(text, start, start + BLOCK_CHARACTERS))
            if len(self.counts) > MOST_WORDS:
                rare = sorted(self.counts.values())[len(self.counts) // 2]
                self.counts = Counter({word: count for word, count in self.counts.items() if count > rare})

    def by_bytes(self, most: int | None = None) -> list[tuple[str, int, int]]:
        """Words, their counts, and their bytes beyond one in all places together, the `most` of these first."""
        sized = ((word, count, count * (len(word.encode()) - 1)) for word, count in self.counts.items())
        return sorted(sized, key=lambda item: (-item[2], item[0]))[:most]


@dataclass(frozen=True)
class CostlyWord:
    """A word, how often it occurs, and what it is cut into; a piece that is only the sign before it is left out."""

    word: str
    count: int
    pieces: list[bytes]
    cost: int  # tokens beyond one in all places together


def find_costly_words(tokenizer: Tokenizer, words: WordCounter, most: int) -> list[CostlyWord]:
    """The `most` words of the highest cost, each encoded by itself; equal ones by the alphabet."""
    found: list[CostlyWord] = []
    for word, count, bound in words.by_bytes():  # no word has more tokens than bytes
        if len(found) == most and bound < found[-1].cost:
            break
        pieces = without_sign(word, [tokenizer.token_bytes(token) for token in tokenizer.encode(word)])
        found.append(CostlyWord(word, count, pieces, count * (len(pieces) - 1)))
        found = sorted(found, key=lambda costly: (-costly.cost, costly.word))[:most]
    return [costly for costly in found if costly.cost]


def without_sign(word: str, pieces: list[bytes]) -> list[bytes]:
    """The pieces of a word without those of the space or sign before it, where that is not joined to the word."""
    sign = b"" if re.match(r"\w", word) else word[0].encode()
    length = 0
    for place, piece in enumerate(pieces):
        if length == len(sign):
            return pieces[place:]
        length += len(piece)
    return pieces
