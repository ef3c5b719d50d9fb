"""Characters as tokens; a character that training never saw is spelt in bytes."""

from collections.abc import Iterable
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

FALLBACK = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}  # by Llama's names for its 256 byte tokens
DECODER = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}

EXPECTED_CHARACTERS = 65  # tinyshakespeare's; another text's are known once its tokenizer is trained
CODE_POINTS = 0x110000
UNSEEN = np.uint32(0xFFFF_FFFF)


def define_characters(symbols: list[str], special: Iterable[str]) -> dict[str, Any]:
    """The tokenizer.json of these characters, the bytes and the special tokens."""
    vocabulary = {symbol: token for token, symbol in enumerate([*symbols, *FALLBACK])}
    ids = place_special(special, len(vocabulary))
    return define(vocabulary, ids, merges=[], pre_tokenizer=None, decoder=DECODER, byte_fallback=True)


class CharTokenizer(Tokenizer):
    """The characters of the training text by code point, then the 256 bytes, then end-of-text and what is reserved."""

    kind = "char"

    def __init__(self, artefact: bytes) -> None:
        super().__init__(artefact)
        self._first_byte = self.vocab_size - len(self.special_tokens) - len(FALLBACK)
        self._ids = np.full(CODE_POINTS, UNSEEN, dtype=np.uint32)  # by code point
        for token in range(self._first_byte):
            self._ids[ord(self.token_bytes(token).decode())] = token

    @classmethod
    def train(cls, texts: Iterable[list[str]]) -> "CharTokenizer":
        """One token for each character in `texts`."""
        seen: set[str] = set()
        for batch in texts:
            seen.update(*batch)
        # A lone surrogate is no character: encoding replaces it.
        symbols = sorted(symbol for symbol in seen if not "\ud800" <= symbol <= "\udfff")
        return cls(write_definition(define_characters(symbols, [END_OF_TEXT])))

    @classmethod
    def has_written(cls, definition: Any) -> bool:
        """Characters, bytes and special tokens, each with the id that its place gives."""
        special = read_special(definition)
        match definition:
            case {"model": {"vocab": dict(vocabulary)}}:
                symbols = list(vocabulary)[: -len(FALLBACK) - len(special)]
                expected = define_characters(symbols, special)
                return all(len(symbol) == 1 for symbol in symbols) and bool(definition == expected)
        return False

    def _encode(self, text: str) -> Ids:
        ids: Ids = self._ids[np.frombuffer(text.encode("utf-32-le"), dtype="<u4")]  # (characters,)
        unseen = ids == UNSEEN
        if not unseen.any():
            return ids
        spelt = [text[place].encode() for place in np.flatnonzero(unseen)]
        widths = np.ones(len(ids), dtype=np.int64)  # tokens of each character
        widths[unseen] = [len(spelling) for spelling in spelt]
        ids, unseen = np.repeat(ids, widths), np.repeat(unseen, widths)
        ids[unseen] = np.frombuffer(b"".join(spelt), dtype=np.uint8).astype(np.uint32) + np.uint32(self._first_byte)
        return ids

    def _spell(self, symbol: str) -> bytes:
        return FALLBACK.get(symbol) or symbol.encode()


CHAR_KIND = TokenizerKind(
    train=lambda texts, special_tokens: CharTokenizer.train(texts).reserve(special_tokens),
    expect=lambda special_tokens: EXPECTED_CHARACTERS + len(FALLBACK) + 1 + len(special_tokens),
    tokenizer=CharTokenizer,
)
