"""A split's tokens on disk: .npy shards and a manifest, written as a stream and read as one array."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lmcore.errors import ArtifactError
from lmcore.files import fingerprint, read_json, sha256_file
from lmcore.tokenizer.base import Tokenizer

MANIFEST = "manifest.json"
REMEDY = "run the encode stage (dvc repro encode), or fetch it (dvc pull)"


class ShardWriter:
    """Cuts a stream of tokens into SPLIT-00000.npy, ... of exactly `shard_tokens` tokens, the last one shorter.

    Nothing but the current chunk is in memory: the header of a .npy file leaves room for any count.
    """

    def __init__(self, folder: Path, split: str, shard_tokens: int, dtype: DTypeLike) -> None:
        self._folder, self._split, self._shard_tokens = folder, split, shard_tokens
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._file: BinaryIO | None = None
        self._counts: list[int] = []  # tokens of each shard so far

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_shard()

    def append(self, tokens: NDArray[Any]) -> None:
        """Add one-dimensional `tokens`, however many."""
        while len(tokens):
            if self._file is None:
                self._file = self._path(len(self._counts)).open("wb")
                self._counts.append(0)
                self._write_header()
            part = tokens[: self._shard_tokens - self._counts[-1]]
            self._file.write(part.astype(self._dtype).tobytes())
            self._counts[-1] += len(part)
            tokens = tokens[len(part) :]
            if self._counts[-1] == self._shard_tokens:
                self._finish_shard()

    def describe(self) -> list[dict[str, Any]]:
        """The manifest's entry of each shard, once all are closed."""
        return [
            {"file": self._path(shard).name, "tokens": count, "sha256": sha256_file(self._path(shard))}
            for shard, count in enumerate(self._counts)
        ]

    def _path(self, shard: int) -> Path:
        return self._folder / f"{self._split}-{shard:05d}.npy"

    def _write_header(self) -> None:
        assert self._file is not None
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._counts[-1],)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def _finish_shard(self) -> None:
        if self._file is not None:
            with self._file:
                self._file.seek(0)
                self._write_header()
            self._file = None


@dataclass(frozen=True)
class TokenShards:
    """One split's tokens, memory-mapped, as a stream: one virtual end-of-text, then every token of the shards.

    With the virtual end-of-text in front, each real token is predicted from something, the first one included.
    """

    split: str
    tokens: int
    bytes: int
    vocab_size: int
    end_of_text: int
    tokenizer: str  # fingerprint of the tokenizer that made the tokens
    fingerprint: str  # of the split's entry in the manifest, hence of all its tokens
    _pieces: list[NDArray[Any]] = field(repr=False)
    _starts: list[int] = field(repr=False)  # where each piece begins in the stream

    @classmethod
    def open(cls, folder: Path, split: str) -> "TokenShards":
        """Check every shard against the manifest. Raises ArtifactError naming the file and the way out."""
        path = folder / MANIFEST
        manifest = read_json(path, REMEDY)
        try:
            entry = manifest["splits"][split]
            dtype = np.dtype(manifest["dtype"])
            shards = [_open_shard(folder / shard["file"], shard, dtype) for shard in entry["shards"]]
            pieces = [np.array([manifest["end_of_text"]]), *shards]
            starts = list(accumulate(map(len, pieces), initial=0))
            if starts[-1] != entry["tokens"] + 1:
                raise ArtifactError(
                    f"{path} promises {entry['tokens']} {split} tokens, its shards hold {starts[-1] - 1}: {REMEDY}"
                )
            return cls(
                split=split,
                tokens=entry["tokens"],
                bytes=entry["bytes"],
                vocab_size=manifest["vocab_size"],
                end_of_text=manifest["end_of_text"],
                tokenizer=manifest["tokenizer"],
                fingerprint=fingerprint(entry),
                _pieces=pieces,
                _starts=starts[:-1],
            )
        except (LookupError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path} does not describe a split {split!r} ({type(error).__name__}: {error}): {REMEDY}"
            ) from None

    def __len__(self) -> int:
        return self.tokens + 1

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """Tokens `start` to `start + length` of the stream, (length,), from as many shards as they touch."""
        window: NDArray[np.int64] = self.read_windows([start], length)[0]
        return window

    def read_windows(self, starts: list[int], length: int) -> NDArray[np.int64]:
        """`read` at each of `starts`, (windows, length), copied and widened in one go."""
        parts = [part for start in starts for part in self._slice(start, length)]
        return np.concatenate(parts, dtype=np.int64).reshape(len(starts), length)

    def _slice(self, start: int, length: int) -> Iterator[NDArray[Any]]:
        """The parts of the pieces that make up a stretch of the stream."""
        end = start + length
        assert 0 <= start < end <= len(self), (start, length, len(self))
        piece = bisect_right(self._starts, start) - 1
        while start < end:
            offset = start - self._starts[piece]
            part = self._pieces[piece][offset : offset + end - start]
            yield part
            start += len(part)
            piece += 1

    def require_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise ArtifactError, naming both fingerprints, unless `tokenizer` made these tokens."""
        if tokenizer.fingerprint != self.tokenizer:
            raise ArtifactError(
                f"the {self.split} tokens were made by tokenizer {self.tokenizer[:12]}, "
                f"not by {tokenizer.fingerprint[:12]}: run the encode stage (dvc repro encode), "
                f"or use the tokenizer that made them"
            )


def _open_shard(path: Path, entry: dict[str, Any], dtype: "np.dtype[Any]") -> NDArray[Any]:
    """The shard's tokens, memory-mapped, after its checksum, type and length were found as promised."""
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: {REMEDY}")
    found = sha256_file(path)
    if found != entry["sha256"]:
        raise ArtifactError(
            f"{path} is damaged: its sha256 is {found[:12]}, {MANIFEST} has {entry['sha256'][:12]}: {REMEDY}"
        )
    shard = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # a plain view: slicing a memmap is slow
    if shard.dtype != dtype or shard.shape != (entry["tokens"],):
        raise ArtifactError(
            f"{path} holds {shard.dtype} {shard.shape}, {MANIFEST} promises {dtype} ({entry['tokens']},): {REMEDY}"
        )
    return shard
