"""General-purpose compressors on the same text, as bits per byte to compare a model with."""

import gzip
import lzma
from collections.abc import Iterable

import numpy as np

from lmcore.tokenizer.base import Tokenizer

LEVEL = 9  # the strongest that `gzip` and `xz` offer by a plain digit


def compress(text: bytes) -> dict[str, float]:
    """Bits per byte of `gzip -9` and `xz -9` over `text`, which must not be empty.

    >>> compress(b"tick tock " * 1000)["gzip"] < 0.1
    True
    """
    sizes = {"gzip": len(gzip.compress(text, LEVEL, mtime=0)), "xz": len(lzma.compress(text, preset=LEVEL))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def read_text(windows: Iterable[np.ndarray], tokenizer: Tokenizer) -> bytes:
    """The bytes of the windows' targets (all tokens but each window's first), which is the text that a loss counts."""
    pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    for token in tokenizer.special_tokens.values():
        pieces[token] = b""
    return b"".join(b"".join(map(pieces.__getitem__, window[1:].tolist())) for window in windows)
