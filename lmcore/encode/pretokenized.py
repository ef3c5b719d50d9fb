"""Tokens that others made, taken as shards: nanoGPT's and llm.c's .bin files, .npy arrays, and ids as text."""

import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lmcore.encode.shard_writer import SplitWriter, choose_dtype, write_manifest
from lmcore.errors import DataError, ParameterError
from lmcore.files import find_changed, named_path, read_array_header, read_json, write_folder
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokens.checksums import VerifiedFiles
from lmcore.tokens.shards import MANIFEST, REMEDY

# train.bin and val.bin; tiny_shakespeare_train.bin; fineweb_train_000001.bin, of which there may be many.
NAME = re.compile(r"(?P<set>(?:.*[_-])?(?P<split>train|val|validation))(?:[_-]?\d+)?(?P<format>\.(?:bin|npy|txt|ids))")
CHUNK_BYTES = 1 << 20
# llm.c, dev/data/data_common.py: 256 int32 before the tokens, of which the first are magic, version, count.
LLMC_HEADER_BYTES = 1024
LLMC_TYPES = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
DIGITS = 18  # of a number that 64 bits hold


def take_tokens(
    name: str, shard_tokens: int, tokenizer: Tokenizer, folder: Path, verified: VerifiedFiles
) -> dict[str, int | float | str]:
    """Write the shards of the tokens in the folder `name` and their manifest, which says where they are from.

    Each end-of-text opens a document. One before all text or after it belongs to no two documents, and is left out.
    Memory is that of a megabyte of a file. Returns the metrics of `write_manifest`. Raises ParameterError where files
    are missing, DataError for one that is not what its name says, or holds ids that `tokenizer` has not.
    """
    files = {
        split: [TokenFile(path, tokenizer.vocab_size) for path in paths]
        for split, paths in find_tokenized(name).items()
    }
    dtype = choose_dtype(tokenizer.vocab_size)
    with write_folder(folder) as new:
        entries = {}
        for split, some in files.items():
            with SplitWriter(new, split, shard_tokens, dtype, tokenizer.end_of_text) as writer:
                writer.open_document("tokenized")
                chunks = (ids for file in some for ids in file.read())
                for ids in trim(chunks, tokenizer.end_of_text):
                    writer.append(ids, int(tokenizer.byte_lengths[ids].sum()))
            if not writer.text_tokens:
                raise DataError(f"{', '.join(str(file.path) for file in some)}: there is no token but end-of-text")
            entries[split] = writer.describe(verified)
        origin = [
            {"file": file.path.name, "bytes": file.bytes, "sha256": file.digest.hexdigest()}
            for some in files.values()
            for file in some
        ]
        return write_manifest(new, tokenizer, entries, tokenized={"path": name, "files": origin})


def find_tokenized(name: str) -> dict[str, list[Path]]:
    """The files of each split in the folder `name`, from the project's root. Raises ParameterError."""
    folder = named_path(name)
    if not folder.is_dir():
        raise ParameterError(
            f"encode.tokenized={name!r}: {folder} is no folder; a relative path begins at dvc.yaml's folder"
        )
    found = {}
    for split, short in (("train", "train"), ("validation", "val")):
        named = [(path, match) for path, match in match_files(folder) if match["split"].startswith(short)]
        found[split] = [path for path, _ in named]
        sets = sorted({match["set"] + match["format"] for _, match in named})
        if not sets:
            raise ParameterError(
                f"encode.tokenized={name!r}: no {split} tokens in {folder}: there must be {short}.bin, {short}.npy, "
                f"{short}.txt or {short}.ids"
            )
        if len(sets) > 1:
            raise ParameterError(
                f"encode.tokenized={name!r}: {' and '.join(sets)} could both be the {split} tokens: "
                f"keep one of them in {folder}"
            )
    return found


def match_files(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """The files in `folder` that are named as tokens, sorted, each with what its name says."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and (match := NAME.fullmatch(path.name)):
            yield path, match


def find_changed_tokens(folder: Path) -> list[str]:
    """The files that the shards in `folder` were taken from and that are gone or no longer the same, and new ones."""
    tokenized = read_json(folder / MANIFEST, REMEDY).get("tokenized")
    if tokenized is None:
        return []
    place = named_path(tokenized["path"])
    found = {path.name: path for path, _ in match_files(place)} if place.is_dir() else {}
    return sorted(find_changed({entry["file"]: entry for entry in tokenized["files"]}, found))


def trim(chunks: Iterator[NDArray[np.int64]], end_of_text: int) -> Iterator[NDArray[np.int64]]:
    """The chunks without an end-of-text at the very beginning and one at the very end."""
    held = np.empty(0, np.int64)
    for number, ids in enumerate(chunks):
        text = np.concatenate([held, ids[1:] if number == 0 and ids[0] == end_of_text else ids])
        yield text[:-1]
        held = text[-1:]
    yield held[held != end_of_text]


class TokenFile:
    """A file of ids, read once from the beginning to the end; then its `bytes` and the `digest` of them are known."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.path, self.vocab_size, self.bytes = path, vocab_size, 0
        self.digest = sha256()

    def read(self) -> Iterator[NDArray[np.int64]]:
        """The ids, (n,), a chunk at a time, none of them empty. Raises DataError."""
        read = {".bin": self._read_binary, ".npy": self._read_array}.get(self.path.suffix, self._read_text)
        position, vocab_size = 0, self.vocab_size
        with self.path.open("rb") as file:
            for ids in read(file):
                if ids.min() < 0 or ids.max() >= vocab_size:
                    place = int(np.argmax((ids < 0) | (ids >= vocab_size)))
                    raise DataError(
                        f"{self.path}: the id at position {position + place:,} (from 0) is {ids[place]}, outside the "
                        f"tokenizer's vocabulary (vocab_size {vocab_size}): train_tokenizer must give the tokenizer "
                        f"that made these tokens"
                    )
                position += len(ids)
                yield ids.astype(np.int64)
        if not position:
            raise DataError(f"{self.path} holds no tokens")

    def _read_binary(self, file: BinaryIO) -> Iterator[NDArray[np.integer]]:
        """llm.c's files have a header; nanoGPT's are nothing but uint16."""
        magic, version, count = np.frombuffer(file.read(12).ljust(12, b"\0"), "<i4").tolist()
        if magic in {known for known, _ in LLMC_TYPES}:
            if (magic, version) not in LLMC_TYPES:
                raise DataError(f"{self.path}: llm.c's version {version} of {magic} is none that lmcore knows")
            yield from self._read_numbers(file, LLMC_HEADER_BYTES, LLMC_TYPES[magic, version], count)
        elif self.vocab_size > 1 << 16:
            raise DataError(
                f"{self.path} has no header, hence tokens of 16 bits, which cannot name the {self.vocab_size} of the "
                f"tokenizer: give them as .npy"
            )
        else:
            yield from self._read_numbers(file, 0, "<u2", None)

    def _read_array(self, file: BinaryIO) -> Iterator[NDArray[np.integer]]:
        try:
            shape, dtype = read_array_header(file)
        except ValueError as error:
            raise DataError(f"{self.path} is no .npy file ({error})") from None
        if len(shape) != 1 or dtype.kind not in "iu":
            raise DataError(f"{self.path} holds {dtype} {shape}: must be whole numbers in one dimension")
        yield from self._read_numbers(file, file.tell(), dtype, shape[0])

    def _read_numbers(
        self, file: BinaryIO, header: int, dtype: DTypeLike, count: int | None
    ) -> Iterator[NDArray[np.integer]]:
        """The numbers after the header, of which there must be `count` and nothing else."""
        kind = np.dtype(dtype)
        size = self.path.stat().st_size - header
        if count is not None and size != count * kind.itemsize:
            raise DataError(
                f"{self.path} is damaged: its header promises {count:,} tokens of {kind}, {size:,} bytes follow"
            )
        if size % kind.itemsize:
            raise DataError(
                f"{self.path} has {size:,} bytes: must be a multiple of {kind.itemsize}, as tokens are {kind}"
            )
        file.seek(0)
        self._take(file, header)
        while chunk := self._take(file, CHUNK_BYTES):
            yield np.frombuffer(chunk, kind)

    def _read_text(self, file: BinaryIO) -> Iterator[NDArray[np.integer]]:
        """Whole numbers between blanks and line ends."""
        rest, position = b"", 0
        while chunk := self._take(file, CHUNK_BYTES):
            words = (rest + chunk).split()
            rest = b"" if chunk[-1:].isspace() or len(words) == 0 else words.pop()
            if words or len(rest) > DIGITS:
                yield self._parse([*words, *([rest] if len(rest) > DIGITS else [])], position)
                position += len(words)
        if rest:
            yield self._parse([rest], position)

    def _parse(self, words: list[bytes], position: int) -> NDArray[np.int64]:
        if not b"".join(words).isdigit() or max(map(len, words)) > DIGITS:
            place = next(n for n, word in enumerate(words) if not word.isdigit() or len(word) > DIGITS)
            shown = words[place][:20].decode("utf-8", errors="replace")
            raise DataError(
                f"{self.path}: {shown!r} at position {position + place:,} (from 0) is no token id: must be whole "
                f"numbers from 0, between blanks or line ends"
            )
        return np.fromiter(map(int, words), np.int64, len(words))

    def _take(self, file: BinaryIO, size: int) -> bytes:
        chunk = file.read(size)
        self.digest.update(chunk)
        self.bytes += len(chunk)
        return chunk
