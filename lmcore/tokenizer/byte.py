"""Bytes as tokens, and the printable spelling of bytes that tokenizer.json uses."""

from collections.abc import Iterable
from itertools import count
from typing import Any

import numpy as np

from lmcore.tokenizer.base import (
    END_OF_TEXT,
    Ids,
    Tokenizer,
    TokenizerKind,
    define,
    place_special,
    read_special,
    write_definition,
)

# The printable character of each byte: itself in Latin-1, or the next one from U+0100 (GPT-2's encoder.py).
SPARE = count(0x100)
SYMBOLS = [byte if byte.isprintable() and byte != " " else chr(next(SPARE)) for byte in map(chr, range(256))]
BYTES = {symbol: byte for byte, symbol in enumerate(SYMBOLS)}

BYTE_LEVEL: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def define_bytes(special: Iterable[str]) -> dict[str, Any]:
    """The tokenizer.json of the bytes and these special tokens."""
    return define(BYTES, place_special(special, 256), merges=[], pre_tokenizer=BYTE_LEVEL, decoder=BYTE_LEVEL)


def write_symbols(token: bytes) -> str:
    """The printable spelling of a token: b" the" -> "Ġthe"."""
    return "".join([SYMBOLS[byte] for byte in token])


def read_symbols(symbols: str) -> bytes:
    """The token of a printable spelling: "Ġthe" -> b" the"."""
    return bytes([BYTES[symbol] for symbol in symbols])


class ByteTokenizer(Tokenizer):
    """UTF-8 as it is: the id is the byte, 256 is end-of-text."""

    kind = "byte"

    @classmethod
    def create(cls) -> "ByteTokenizer":
        """The one byte tokenizer; there is nothing to train."""
        return cls(write_definition(define_bytes([END_OF_TEXT])))

    @classmethod
    def has_written(cls, definition: Any) -> bool:
        """There is but one for the same special tokens."""
        return bool(definition == define_bytes(read_special(definition)))

    def _encode(self, text: str) -> Ids:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)

    def _spell(self, symbol: str) -> bytes:
        return read_symbols(symbol)


BYTE_KIND = TokenizerKind(
    train=lambda _, special_tokens: ByteTokenizer.create().reserve(special_tokens),
    expect=lambda special_tokens: 257 + len(special_tokens),
    tokenizer=ByteTokenizer,
)
