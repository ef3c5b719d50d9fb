"""Texts for benchmarks: the standard library's source, and the tokens of texts in memory."""

import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmcore.encode.encode import encode_splits
from lmcore.encode.params import EncodeParams
from lmcore.files import fingerprint
from lmcore.tokenizer.base import Tokenizer


def read_library() -> list[str]:
    """Return the source files of the running Python's standard library, without packages installed beside it."""
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    kept = [file for file in files if not {"site-packages", "test", "tests", "encodings"} & set(file.parts)]
    return [file.read_text(encoding="utf-8", errors="replace") for file in kept]


@dataclass(frozen=True)
class TextsInMemory:
    """The documents of a split for `encode_splits`."""

    batches: Sequence[list[str]]
    source: str = "text"

    @property
    def size(self) -> int:
        """Characters, close enough to bytes for a progress bar."""
        return sum(len(text) for batch in self.batches for text in batch)

    def fingerprint(self) -> str:
        """Return the SHA-256 of all texts."""
        return fingerprint(self.batches)

    def read(self) -> Iterator[list[str]]:
        """Return the batches."""
        return iter(self.batches)


def encode_texts(
    splits: Mapping[str, Sequence[list[str]]], tokenizer: Tokenizer, folder: Path, shard_tokens: int
) -> None:
    """Write the shards of splits in memory, given in batches, to `folder/tokens`."""
    parts = {split: [TextsInMemory(batches)] for split, batches in splits.items()}
    params = EncodeParams(shard_tokens=shard_tokens)
    encode_splits(params, parts, tokenizer, folder / "tokens", scratch=folder / "parts")
