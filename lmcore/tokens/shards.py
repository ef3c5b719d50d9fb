"""A split's tokens on disk, .npy shards and a manifest, checked and read as one array."""

import mmap
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from lmcore.errors import ArtifactError
from lmcore.files import fingerprint, read_json
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokens.checksums import VerifiedFiles

MANIFEST = "manifest.json"
HEADER_BYTES = 128  # of a one-dimensional .npy file, whatever its count
CHUNK = 1 << 20
REMEDY = "run the encode stage (dvc repro encode), or fetch it (dvc pull)"


@dataclass(frozen=True)
class TokenSource:
    """The stretch of a split's stream that came from one source: positions `begin` to `end`, end-of-texts included."""

    name: str
    begin: int
    end: int

    @property
    def tokens(self) -> int:
        """Targets in it: every position but the first."""
        return self.end - 1 - self.begin


@dataclass(frozen=True)
class TokenShards:
    """One split's tokens, memory-mapped, as a stream: one virtual end-of-text, then every token of the shards.

    With the virtual end-of-text in front, each real token is predicted from something, the first one included. What
    the files hold is taken on trust until `verify` was called, by one of the processes that read them.
    """

    split: str
    tokens: int
    bytes: int
    vocab_size: int
    end_of_text: int
    tokenizer: str  # fingerprint of the tokenizer that made the tokens
    fingerprint: str  # of the split's entry in the manifest, hence of all its tokens
    sources: tuple[TokenSource, ...]
    tokenized: dict[str, str]  # the files that were taken instead of documents, with their SHA-256
    _folder: Path = field(repr=False)
    _entry: dict[str, Any] = field(repr=False)  # the split's, in the manifest
    _dtype: "np.dtype[Any]" = field(repr=False)
    _starts: list[int] = field(repr=False)  # where the virtual end-of-text and each shard begin in the stream
    _mapped: dict[int, NDArray[Any]] = field(repr=False)  # these, as far as they were needed

    @classmethod
    def open(cls, folder: Path, split: str) -> "TokenShards":
        """Check every file's size against the manifest. Raises ArtifactError naming the file and the way out.

        Takes 20 ms for 1,000 shards: none of them is opened before it is read.
        """
        path = folder / MANIFEST
        manifest = read_json(path, REMEDY)
        try:
            entry, dtype = manifest["splits"][split], np.dtype(manifest["dtype"])
            for shard in entry["shards"]:
                _require_size(folder / shard["file"], shard["tokens"], dtype)
            _require_size(folder / entry["document_offsets"]["file"], entry["documents"], np.dtype("uint64"))
            starts = list(accumulate((shard["tokens"] for shard in entry["shards"]), initial=1))
            ends = list(accumulate((source["tokens"] for source in entry["sources"]), initial=1))
            for end in (starts[-1], ends[-1]):
                if end != entry["tokens"] + 1:
                    raise ArtifactError(
                        f"{path} promises {entry['tokens']} {split} tokens, its shards hold {end - 1}: {REMEDY}"
                    )
            names = [source["name"] for source in entry["sources"]]
            return cls(
                split=split,
                tokens=entry["tokens"],
                bytes=entry["bytes"],
                vocab_size=manifest["vocab_size"],
                end_of_text=manifest["end_of_text"],
                tokenizer=manifest["tokenizer"],
                fingerprint=fingerprint(entry),
                tokenized={file["file"]: file["sha256"] for file in manifest.get("tokenized", {}).get("files", [])},
                sources=tuple(map(TokenSource, names, [0, *ends[1:-1]], ends[1:])),
                _folder=folder,
                _entry=entry,
                _dtype=dtype,
                _starts=[0, *starts[:-1]],
                _mapped={0: np.array([manifest["end_of_text"]])},
            )
        except (LookupError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path} does not describe a split {split!r} ({type(error).__name__}: {error}): {REMEDY}"
            ) from None

    def verify(self, verified: VerifiedFiles) -> None:
        """Raise ArtifactError for a file that is not what the manifest promises, or an id outside the vocabulary.

        Reads what `verified` does not know: all of it the first time.
        """
        entries = [*self._entry["shards"], self._entry["document_offsets"]]
        paths = [self._folder / entry["file"] for entry in entries]
        found = verified.examine_all(f"verify the {self.split} tokens", paths)
        for path, entry, contents in zip(paths, entries, found, strict=True):
            if contents.sha256 != entry["sha256"]:
                raise ArtifactError(
                    f"{path} is damaged: its sha256 is {contents.sha256[:12]}, {MANIFEST} has {entry['sha256'][:12]}: "
                    f"{REMEDY}"
                )
            if "tokens" in entry and contents.largest >= self.vocab_size:
                _refuse_id(path, self.vocab_size)

    def __len__(self) -> int:
        return self.tokens + 1

    @property
    def documents(self) -> NDArray[np.uint64]:
        """Where each document begins, (documents,), memory-mapped: the position of the end-of-text that opens it.

        The first one's is 0, the virtual one. In the shards' files, where that is missing, the same number is the place
        of a document's first token.
        """
        entry = self._entry["document_offsets"]
        return _map(self._folder / entry["file"], self._entry["documents"], np.dtype("uint64"))

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
        assert 0 <= start < end <= self.tokens + 1, (start, length, len(self))
        piece = bisect_right(self._starts, start) - 1
        while start < end:
            offset = start - self._starts[piece]
            if piece not in self._mapped:
                entry = self._entry["shards"][piece - 1]
                self._mapped[piece] = _map(self._folder / entry["file"], entry["tokens"], self._dtype)
            part = self._mapped[piece][offset : offset + end - start]
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


def _require_size(path: Path, count: int, dtype: "np.dtype[Any]") -> None:
    """Raise ArtifactError unless the file's size is that of a .npy file of so many numbers."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist: {REMEDY}") from None
    promised = HEADER_BYTES + count * dtype.itemsize
    if size != promised:
        raise ArtifactError(
            f"{path} is damaged: it has {size:,} bytes, {MANIFEST} promises {count:,} numbers of {dtype}, which are "
            f"{promised:,}: {REMEDY}"
        )


def _map(path: Path, count: int, dtype: "np.dtype[Any]") -> NDArray[Any]:
    """The file's numbers, memory-mapped, its type and length being as promised."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): {REMEDY}") from None
    # Windows lie anywhere: reading ahead, by 8 MB on some disks, would cost ten times what the window does.
    mapped._mmap.madvise(mmap.MADV_RANDOM)
    array = np.asarray(mapped)  # a plain view: slicing a memmap is slow
    if array.dtype != dtype or array.shape != (count,):
        raise ArtifactError(
            f"{path} holds {array.dtype} {array.shape}, {MANIFEST} promises {dtype} ({count},): {REMEDY}"
        )
    return array


def _refuse_id(path: Path, vocab_size: int) -> NoReturn:
    """Name the first id in the shard that the vocabulary has not."""
    ids = np.load(path, mmap_mode="r", allow_pickle=False)
    chunks = ((begin, ids[begin : begin + CHUNK]) for begin in range(0, len(ids), CHUNK))
    place = next(begin + int(np.argmax(chunk >= vocab_size)) for begin, chunk in chunks if chunk.max() >= vocab_size)
    raise ArtifactError(
        f"{path}: the id at position {place:,} (from 0) is {ids[place]}, the vocabulary ends with {vocab_size - 1} "
        f"(vocab_size {vocab_size}): {REMEDY}"
    )
