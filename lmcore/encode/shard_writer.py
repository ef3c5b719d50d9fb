"""Token shards as they grow: the .npy files of one split, where its documents begin, and the manifest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lmcore.files import write_json
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokens.checksums import VerifiedFiles
from lmcore.tokens.shards import MANIFEST


class ArrayWriter:
    """A one-dimensional .npy file as a stream; its header, which leaves room for any count, is filled in at the end."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self.path, self.count = path, 0
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._file = path.open("wb")
        self._write_header()

    def append(self, values: NDArray[Any]) -> None:
        """Add one-dimensional `values`, however many."""
        self._file.write(values.astype(self._dtype).tobytes())
        self.count += len(values)

    def close(self) -> None:
        """The file is whole after this."""
        with self._file:
            self._file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.count,)}
        np.lib.format.write_array_header_1_0(self._file, header)


class SplitWriter:
    """One split: its shards, SPLIT-documents.npy (see `TokenShards.documents`), and what of it is whose.

    The stream of tokens is cut into SPLIT-00000.npy, ... of exactly `shard_tokens` tokens, the last one shorter;
    nothing but the current chunk is in memory. An end-of-text stands between documents only; the one in front of the
    first is virtual.
    """

    def __init__(self, folder: Path, split: str, shard_tokens: int, dtype: DTypeLike, end_of_text: int) -> None:
        self._folder, self._split, self._shard_tokens, self._dtype = folder, split, shard_tokens, dtype
        self._shards: list[ArrayWriter] = []  # the last one is open
        self._documents = ArrayWriter(folder / f"{split}-documents.npy", np.uint64)
        self._end_of_text = end_of_text
        self._tokens = 0
        self._sources: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for array in (self._documents, *self._shards[-1:]):
            array.close()

    @property
    def text_tokens(self) -> int:
        """Tokens so far that are not end-of-text."""
        return self._tokens - max(0, self._documents.count - 1)

    def open_document(self, source: str) -> None:
        """Begin a document of `source`; those of one source come one after another."""
        if not self._sources or self._sources[-1]["name"] != source:
            assert source not in [earlier["name"] for earlier in self._sources], source
            self._sources.append({"name": source, "tokens": 0, "documents": 0, "bytes": 0})
        if self._documents.count:
            self.append(np.array([self._end_of_text]), 0)
        else:
            self._add_documents(np.zeros(1, np.uint64))

    def append(self, tokens: NDArray[Any], size: int) -> None:
        """Add `tokens` of the open document, and of others that end-of-texts among them open; `size` bytes of text."""
        self._add_documents(np.flatnonzero(tokens == self._end_of_text) + (self._tokens + 1))
        self._tokens += len(tokens)
        self._sources[-1]["tokens"] += len(tokens)
        self._sources[-1]["bytes"] += size
        while len(tokens):
            if not self._shards or self._shards[-1].count == self._shard_tokens:
                for shard in self._shards[-1:]:
                    shard.close()
                path = self._folder / f"{self._split}-{len(self._shards):05d}.npy"
                self._shards.append(ArrayWriter(path, self._dtype))
            part = tokens[: self._shard_tokens - self._shards[-1].count]
            self._shards[-1].append(part)
            tokens = tokens[len(part) :]

    def _add_documents(self, offsets: NDArray[Any]) -> None:
        self._documents.append(offsets)
        self._sources[-1]["documents"] += len(offsets)

    def describe(self, verified: VerifiedFiles) -> dict[str, Any]:
        """The split's entry in the manifest, once all is written."""
        documents = self._documents
        return {
            "tokens": self._tokens,
            "documents": documents.count,
            "bytes": sum(source["bytes"] for source in self._sources),
            "sources": self._sources,
            "document_offsets": {"file": documents.path.name, "sha256": verified.examine(documents.path).sha256},
            "shards": [
                {"file": shard.path.name, "tokens": shard.count, "sha256": verified.examine(shard.path).sha256}
                for shard in self._shards
            ],
        }


def choose_dtype(vocab_size: int) -> str:
    """The smallest type that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def write_manifest(
    folder: Path, tokenizer: Tokenizer, splits: Mapping[str, dict[str, Any]], **origin: object
) -> dict[str, int | float | str]:
    """Write the manifest of the entries in `splits`; `origin` is what else it says.

    Returns the stage's metrics: SPLIT_tokens of each, bytes_per_token over all of them, dtype.
    """
    dtype = choose_dtype(tokenizer.vocab_size)
    manifest = {
        "dtype": dtype,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "tokenizer": tokenizer.fingerprint,
        **origin,
        "splits": splits,
    }
    write_json(folder / MANIFEST, manifest)
    total_bytes, total_tokens = (sum(entry[unit] for entry in splits.values()) for unit in ("bytes", "tokens"))
    return {
        **{f"{split}_tokens": entry["tokens"] for split, entry in splits.items()},
        "bytes_per_token": round(total_bytes / total_tokens, 4),
        "dtype": dtype,
    }
