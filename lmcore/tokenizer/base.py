"""What every tokenizer is: text to ids and back, derived from one tokenizer.json."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lmcore.files import write_file

END_OF_TEXT = "<|endoftext|>"
FILE_NAME = "tokenizer.json"

# Texts that two readers of one tokenizer must agree on.
SAMPLE_TEXTS = (
    "",
    "Hello, world! It's a test; isn't it?",
    "def area(radius):\n    return 3.14159 * radius ** 2\n\n\n",
    " leading, trailing \t tab\r\n\u00a0no-break  \n ",
    "naïve café, Привет, 世界, नमस्ते, 🙂👩‍👩‍👧, x²¼",
    "0 12 345 6789 98765 123456789 1e-05 0x1F __a_b__ $1 ^2",
    "\n\n\n  x\n\n\t\ty  \n",
    "".join(map(chr, range(256))),
)

Ids = NDArray[np.uint32]


class Tokenizer(ABC):
    """Text to ids and back. Everything is derived from the artefact, so a loaded tokenizer is the trained one.

    The artefact is a tokenizer.json in the format of Hugging Face tokenizers, which gives the same ids. Its only
    special token is END_OF_TEXT, and no text encodes to it: `<|endoftext|>` in a text is thirteen ordinary characters.
    """

    kind: ClassVar[str]

    def __init__(self, artefact: bytes) -> None:
        self.artefact = artefact
        definition: dict[str, Any] = json.loads(artefact)
        vocabulary: dict[str, int] = definition["model"]["vocab"]
        self.end_of_text = vocabulary[END_OF_TEXT]
        self.vocab_size = max(vocabulary.values()) + 1
        # Published vocabularies have gaps; an id that stands for nothing has no bytes.
        self._tokens = [b""] * self.vocab_size
        for symbol, token in vocabulary.items():
            self._tokens[token] = END_OF_TEXT.encode() if token == self.end_of_text else self._spell(symbol)
        missing = {bytes([byte]) for byte in range(256)}.difference(self._tokens)
        if missing:
            raise ValueError(f"{len(missing)} of the 256 bytes have no token")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the artefact."""
        return hashlib.sha256(self.artefact).hexdigest()

    @cached_property
    def byte_lengths(self) -> NDArray[np.int64]:
        """Bytes of text that each id stands for, (vocab_size,); 0 for end-of-text, which is no text."""
        lengths = np.array([len(token) for token in self._tokens], dtype=np.int64)
        lengths[self.end_of_text] = 0
        return lengths

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one id; end-of-text has those of its string."""
        return self._tokens[token]

    def encode(self, text: str) -> list[int]:
        """The ids of any string. A lone surrogate, which UTF-8 cannot say, becomes U+FFFD, as in tiktoken."""
        ids: list[int] = self._encode_any(text).tolist()
        return ids

    def encode_batch(self, texts: list[str], threads: int | None = None) -> list[Ids]:  # noqa: ARG002
        """`encode` of each text, as arrays; in as many threads as are of use (None: one on each core)."""
        return [self._encode_any(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8, such as half a character, become U+FFFD."""
        return b"".join([self._tokens[token] for token in ids]).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Write the artefact, whole or not at all."""
        with write_file(folder / FILE_NAME) as file:
            file.write(self.artefact)

    def _encode_any(self, text: str) -> Ids:
        try:
            return self._encode(text)
        except UnicodeEncodeError:
            return self._encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    @classmethod
    @abstractmethod
    def has_written(cls, definition: Any) -> bool:
        """Whether this parsed tokenizer.json is one that this kind writes."""

    @abstractmethod
    def _encode(self, text: str) -> Ids:
        """The ids of a string; raises UnicodeEncodeError for lone surrogates."""

    @abstractmethod
    def _spell(self, symbol: str) -> bytes:
        """The bytes that a key of the artefact's vocabulary stands for."""


def write_definition(definition: dict[str, Any]) -> bytes:
    """The artefact of a tokenizer.json."""
    return json.dumps(definition, ensure_ascii=False, indent=1).encode() + b"\n"


def define(
    vocabulary: dict[str, int],
    end_of_text: int,
    *,
    merges: Sequence[Sequence[str]],
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """A tokenizer.json of Hugging Face tokenizers; every kind is its BPE model, with or without merges.

    End-of-text is in the vocabulary too, as in GPT-2's file: only there does it keep its id when ids before it are
    missing.
    """
    special = {"id": end_of_text, "content": END_OF_TEXT, "special": True, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**special, "single_word": False, "lstrip": False, "rstrip": False}],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": byte_fallback,
            "ignore_merges": ignore_merges,
            "vocab": {**vocabulary, END_OF_TEXT: end_of_text},
            "merges": merges,
        },
    }
