"""How a tokenizer cuts a text, counted in one pass that also proves that the text comes back."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lmcore.errors import ArtifactError, DataError
from lmcore.prepare.documents import NamedText, file_type
from lmcore.tokenizer.base import Tokenizer
from lmcore.train_tokenizer.words import WordCounter


@dataclass
class Tally:
    """Some texts and what they became."""

    texts: int = 0
    bytes: int = 0
    tokens: int = 0

    def add(self, size: int, tokens: int, texts: int = 1) -> None:
        """Count one text of so many bytes, or several together."""
        self.texts += texts
        self.bytes += size
        self.tokens += tokens

    @property
    def bytes_per_token(self) -> float:
        """To four digits; 0 where there is no token."""
        return round(self.bytes / self.tokens, 4) if self.tokens else 0.0


@dataclass(frozen=True)
class TokenCounts:
    """What a tokenizer made of a text: in all, by the type of the file, of each entry; and the words."""

    used: NDArray[np.int64]  # (vocab_size,), occurrences of each entry
    unused: NDArray[np.int64]  # ids of entries longer than a byte that never occur
    total: Tally = field(default_factory=Tally)
    types: dict[str, Tally] = field(default_factory=dict)
    words: WordCounter = field(default_factory=WordCounter)

    @property
    def metrics(self) -> dict[str, int | float]:
        """vocab_size, bytes_per_token, unused_tokens.

        Entries of a single byte, which are there so that no text fails, and special tokens are not counted as unused.
        """
        return {
            "vocab_size": len(self.used),
            "bytes_per_token": self.total.bytes_per_token,
            "unused_tokens": len(self.unused),
        }


def count_tokens(tokenizer: Tokenizer, batches: Iterable[list[NamedText]]) -> TokenCounts:
    """Encode the texts, decode them again, and count.

    Raises DataError if there is no text, ArtifactError naming the document that does not come back as it was.
    """
    used = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    total, types, words = Tally(), dict[str, Tally](), WordCounter()
    for batch in batches:
        encoded = tokenizer.encode_batch([text for _, text in batch])
        for (name, text), ids in zip(batch, encoded, strict=True):
            prove_round_trip(name, text, tokenizer.decode(ids.tolist()))
            np.add.at(used, ids, 1)
            size = int(tokenizer.byte_lengths[ids].sum())
            total.add(size, len(ids))
            types.setdefault(file_type(name), Tally()).add(size, len(ids))
            words.add(text)
    if not total.tokens:
        raise DataError("the train documents hold no text: check data/raw and the prepare section of params.yaml")
    unused = np.flatnonzero((used == 0) & (tokenizer.byte_lengths > 1))
    return TokenCounts(used, unused, total, types, words)


def prove_round_trip(name: str, text: str, again: str) -> None:
    """Raise ArtifactError unless both texts are the same."""
    if text == again:
        return
    pairs = enumerate(zip(text, again, strict=False))
    place = next((place for place, (one, other) in pairs if one != other), min(len(text), len(again)))
    raise ArtifactError(
        f"{name}: encoded and decoded again it is another text from character {place} on, "
        f"{again[place : place + 10]!r} for {text[place : place + 10]!r}: choose another train_tokenizer.kind or name"
    )
