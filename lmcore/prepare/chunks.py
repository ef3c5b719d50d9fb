"""Raw text in chunks for one process each: some small files, one large file, or a part of a large one."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from lmcore.errors import ArtifactError
from lmcore.files import read_json
from lmcore.prepare.documents import Document, Rejection
from lmcore.prepare.raw_files import Layout, RawFile
from lmcore.prepare.readers import cut_file, read_file

REMEDY = "run the download stage (dvc repro download)"
CHUNK_BYTES = 32 << 20
CHUNK_FILES = 10_000


@dataclass(frozen=True)
class Chunk:
    """Some text of one source, which one process works on at a time; the cut does not depend on the machine."""

    number: int  # its place among all chunks, from 0
    source: str
    files: tuple[RawFile, ...]
    size: int  # bytes on disk

    def read(self) -> Iterator[Document | Rejection]:
        """Every document, in order; what cannot be read as a rejection. Nothing but a document is in memory."""
        for file in self.files:
            try:
                yield from read_file(file)
            except FileNotFoundError:
                raise ArtifactError(f"{file.path} was removed while the stage ran: {REMEDY}") from None


def list_chunks(raw: Path, layout: Layout) -> list[Chunk]:
    """All that the manifest in `raw` lists, in its order.

    Raises ArtifactError when the manifest, or a file that it lists, is missing.
    """
    entries = read_json(raw / "manifest.json", REMEDY)["files"]
    chunks: list[Chunk] = []
    for source, listed in groupby(entries, key=lambda entry: str(entry["source"])):
        some: list[RawFile] = []
        size = 0
        for file in _list_files(raw, listed, layout):
            if some and (size + file.size > CHUNK_BYTES or len(some) == CHUNK_FILES):
                chunks.append(Chunk(len(chunks), source, tuple(some), size))
                some, size = [], 0
            some.append(file)
            size += file.size
        chunks.append(Chunk(len(chunks), source, tuple(some), size))
    return chunks


def _list_files(raw: Path, entries: Iterator[dict[str, Any]], layout: Layout) -> Iterator[RawFile]:
    folder = raw / "files"
    for entry in entries:
        path = folder / entry["path"]
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise ArtifactError(f"{path} does not exist, though {raw}/manifest.json lists it: {REMEDY}") from None
        yield from cut_file(RawFile(path, entry["path"], layout, size), CHUNK_BYTES)
