"""Prompt-lookup decoding: draft tokens from the text itself, which the model verifies many at a time."""

from collections.abc import Sequence

LONGEST_MATCH = 3  # tokens that must have occurred before, at most


class PromptLookup:
    """The tokens after the latest earlier occurrence of the text's last tokens (Saxena's prompt lookup, 2023).

    The longest match wins, the latest one of its length.
    """

    def __init__(self) -> None:
        self._read = 0
        # n-gram -> the end of its latest occurrence, without the one at the text's end.
        self._ends: dict[tuple[int, ...], int] = {}

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """Return at most `count` tokens that may follow `tokens`, the whole text so far, which grows between calls."""
        for end in range(self._read + 1, len(tokens)):  # the n-grams that something follows
            for length in range(1, min(LONGEST_MATCH, end) + 1):
                self._ends[tuple(tokens[end - length : end])] = end
        self._read = max(self._read, len(tokens) - 1)
        for length in range(min(LONGEST_MATCH, len(tokens)), 0, -1):
            found = self._ends.get(tuple(tokens[len(tokens) - length :]))
            if found is not None:
                return list(tokens[found : found + count])
        return []
