"""A fair part of a text that is more than a tokenizer needs to see, the same on every machine."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import count

from lmcore.prepare.documents import NamedText

BLOCK_CHARACTERS = 1 << 16  # a longer document counts as several: one alone may be the whole corpus


def sample_texts(
    batches: Iterable[list[NamedText]], total_bytes: int, max_bytes: int | None
) -> Iterator[list[NamedText]]:
    """About `max_bytes` of the `total_bytes` of text, each block chosen by its number; all of it where it is less.

    A block keeps the name of the document that it is cut from.
    The first block is always there, so that a sample of any size has text. It does not depend on how the texts are cut
    into batches.
    """
    if max_bytes is None or max_bytes >= total_bytes:
        yield from batches
        return
    limit, numbers = max_bytes * 2**64 // total_bytes, count()
    for batch in batches:
        blocks = (
            (name, text[start : start + BLOCK_CHARACTERS])
            for name, text in batch
            for start in range(0, len(text), BLOCK_CHARACTERS)
        )
        if chosen := [block for block in blocks if draw(next(numbers)) < limit]:
            yield chosen


def draw(number: int) -> int:
    """64 bits for a block's number, without pattern; 0 for the first."""
    return int.from_bytes(blake2b(number.to_bytes(8, "big"), digest_size=8).digest(), "big") if number else 0
