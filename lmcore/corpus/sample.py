"""A fair part of a text that is more than a tokenizer needs to see, the same on every machine and in any order."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b

BLOCK_CHARACTERS = 1 << 16  # a longer document counts as several: one alone may be the whole corpus


def sample_texts(batches: Iterable[list[str]], total_bytes: int, max_bytes: int | None) -> Iterator[list[str]]:
    """About `max_bytes` of the `total_bytes` of text, chosen block by block by a hash; all of it where it is less."""
    if max_bytes is None or max_bytes >= total_bytes:
        yield from batches
        return
    limit = max_bytes * 2**64 // total_bytes
    for batch in batches:
        blocks = [
            text[start : start + BLOCK_CHARACTERS] for text in batch for start in range(0, len(text), BLOCK_CHARACTERS)
        ]
        if chosen := [block for block in blocks if hash_block(block) < limit]:
            yield chosen


def hash_block(block: str) -> int:
    """64 bits that depend on the text alone."""
    return int.from_bytes(blake2b(block.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
