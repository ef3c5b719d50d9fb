"""Guesses of what comes next, which the model checks many at a time: drafting without a second model."""

from collections.abc import Callable, Sequence
from typing import Protocol

LONGEST_MATCH = 3  # tokens that must have occurred before, at most


class DraftSource(Protocol):
    """Whatever proposes tokens for one text. The decoder takes of them what it would have chosen itself."""

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that may follow `tokens`, the whole text so far, which only grows between calls."""
        ...


OpenDrafts = Callable[[], DraftSource]  # one for each text


class PromptLookup:
    """What followed the last time that the text's last tokens occurred in it (Saxena's prompt lookup decoding, 2023).

    The longest match wins, the latest one of its length.
    """

    def __init__(self) -> None:
        self._read = 0
        # n-gram -> where its latest occurrence but the one at the text's end is over.
        self._ends: dict[tuple[int, ...], int] = {}

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """See `DraftSource`."""
        for end in range(self._read + 1, len(tokens)):  # the n-grams that are followed by something
            for length in range(1, min(LONGEST_MATCH, end) + 1):
                self._ends[tuple(tokens[end - length : end])] = end
        self._read = max(self._read, len(tokens) - 1)
        for length in range(min(LONGEST_MATCH, len(tokens)), 0, -1):
            found = self._ends.get(tuple(tokens[len(tokens) - length :]))
            if found is not None:
                return list(tokens[found : found + count])
        return []
