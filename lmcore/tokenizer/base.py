"""What every tokenizer is: text to ids and back, derived from one tokenizer.json."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from lmcore.errors import ParameterError
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

    The artefact is a tokenizer.json in the format of Hugging Face tokenizers, which gives the same ids. No text encodes
    to a special token, END_OF_TEXT or a reserved one: `<|endoftext|>` in a text is thirteen ordinary characters.
    """

    kind: ClassVar[str]

    def __init__(self, artefact: bytes) -> None:
        self.artefact = artefact
        definition: dict[str, Any] = json.loads(artefact)
        vocabulary: dict[str, int] = definition["model"]["vocab"]
        self.special_tokens = read_special(definition)
        self.end_of_text = self.special_tokens[END_OF_TEXT]
        self.vocab_size = max(vocabulary.values()) + 1
        # Published vocabularies have gaps; an id that stands for nothing has no bytes.
        self._tokens = [b""] * self.vocab_size
        for symbol, token in vocabulary.items():
            self._tokens[token] = symbol.encode() if symbol in self.special_tokens else self._spell(symbol)
        missing = {bytes([byte]) for byte in range(256)}.difference(self._tokens)
        if missing:
            raise ValueError(f"{len(missing)} of the 256 bytes have no token")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the artefact."""
        return hashlib.sha256(self.artefact).hexdigest()

    @cached_property
    def byte_lengths(self) -> NDArray[np.int64]:
        """Bytes of text that each id stands for, (vocab_size,); 0 for special tokens, which are no text."""
        lengths = np.array([len(token) for token in self._tokens], dtype=np.int64)
        lengths[list(self.special_tokens.values())] = 0
        return lengths

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one id; a special token has those of its string."""
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

    def reserve(self, tokens: Iterable[str]) -> Self:
        """The same tokenizer with further special tokens behind all its ids; those that it has keep theirs.

        Raises ParameterError for one that is spelt like an entry of text.
        """
        new = [token for token in tokens if token not in self.special_tokens]
        definition = json.loads(self.artefact)
        vocabulary: dict[str, int] = definition["model"]["vocab"]
        if taken := vocabulary.keys() & new:
            raise ParameterError(
                f"train_tokenizer.special_tokens: {min(taken)!r} is an entry of the vocabulary already, for text: "
                f"choose another name"
            )
        ids = place_special(new, self.vocab_size)
        definition["added_tokens"] += describe_special(ids)
        vocabulary.update(ids)
        return type(self)(write_definition(definition)) if new else self

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


@dataclass(frozen=True, kw_only=True)
class TokenizerKind:
    """A kind of tokenizer, as `train_tokenizer.kind` names it.

    `reads` names the keys of section train_tokenizer that the kind reads. Their values go by name to `check`, which
    raises ValueError for a wrong one, to `expect`, which returns how many entries the tokenizer will have, and to
    `train`, whose first argument are the texts in batches. All three get `special_tokens` too: `train` reserves them.
    `tokenizer` is the class whose tokenizer.json `load_tokenizer` has to tell from others, if the kind has its own.
    """

    train: Callable[..., Tokenizer]
    expect: Callable[..., int]
    reads: tuple[str, ...] = ()
    check: Callable[..., None] = lambda **_: None
    tokenizer: type[Tokenizer] | None = None


def write_definition(definition: dict[str, Any]) -> bytes:
    """The artefact of a tokenizer.json."""
    return json.dumps(definition, ensure_ascii=False, indent=1).encode() + b"\n"


def read_special(definition: Any) -> dict[str, int]:
    """The ids of the special tokens in a parsed tokenizer.json, in its order."""
    match definition:
        case {"added_tokens": list(added)}:
            return {token["content"]: token["id"] for token in added}
    return {}


def place_special(tokens: Iterable[str], first: int) -> dict[str, int]:
    """The ids of these special tokens, one after the other."""
    return dict(zip(tokens, count(first), strict=False))


def describe_special(ids: dict[str, int]) -> list[dict[str, Any]]:
    """Special tokens as tokenizer.json lists them."""
    flags = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    return [{"id": token, "content": content, **flags} for content, token in ids.items()]


def define(
    vocabulary: dict[str, int],
    special: dict[str, int],
    *,
    merges: Sequence[Sequence[str]],
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """A tokenizer.json of Hugging Face tokenizers; every kind is its BPE model, with or without merges.

    Special tokens are in the vocabulary too, as end-of-text in GPT-2's file: only there do they keep their ids when ids
    before them are missing.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": describe_special(special),
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
            "vocab": {**vocabulary, **special},
            "merges": merges,
        },
    }
