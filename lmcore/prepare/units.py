"""Raw text in units of work: some small files, one large file, or a part of a parquet file or of JSON lines."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmcore.errors import ArtifactError
from lmcore.files import read_json
from lmcore.prepare.documents import Document, Rejection
from lmcore.prepare.readers import CHUNK_BYTES, LINES, Layout, RawFile, has_text, is_wide, read_file

REMEDY = "run the download stage (dvc repro download)"
UNIT_BYTES = 32 << 20
UNIT_FILES = 10_000


@dataclass(frozen=True)
class Unit:
    """Some text of one source, which one process works on at a time; the cut does not depend on the machine."""

    number: int  # its place among all units, from 0
    source: str
    files: tuple[RawFile, ...]
    size: int  # bytes on disk

    def describe_files(self) -> str:
        """Which they are, for a message."""
        first, last = self.files[0].path, self.files[-1].path
        return str(first) if first == last else f"a file from {first} to {last}"

    def read(self) -> Iterator[Document | Rejection]:
        """Every document, in order; what cannot be read as a rejection. Nothing but a document is in memory."""
        for file in self.files:
            try:
                yield from read_file(file)
            except FileNotFoundError:
                raise ArtifactError(f"{file.path} was removed while the stage ran: {REMEDY}") from None


def list_units(raw: Path, layout: Layout) -> list[Unit]:
    """All that the manifest in `raw` lists, in its order.

    Raises ArtifactError when the manifest, or a file that it lists, is missing.
    """
    entries = read_json(raw / "manifest.json", REMEDY)["files"]
    units: list[Unit] = []
    for source, listed in groupby(entries, key=lambda entry: str(entry["source"])):
        some: list[RawFile] = []
        size = 0
        for file in _list_files(raw, listed, layout):
            if some and (size + file.size > UNIT_BYTES or len(some) == UNIT_FILES):
                units.append(Unit(len(units), source, tuple(some), size))
                some, size = [], 0
            some.append(file)
            size += file.size
        units.append(Unit(len(units), source, tuple(some), size))
    return units


def _list_files(raw: Path, entries: Iterator[dict[str, Any]], layout: Layout) -> Iterator[RawFile]:
    folder = raw / "files"
    for entry in entries:
        path = folder / entry["path"]
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise ArtifactError(f"{path} does not exist, though {raw}/manifest.json lists it: {REMEDY}") from None
        yield from _cut(RawFile(path, entry["path"], layout, size))


def _cut(file: RawFile) -> Iterator[RawFile]:
    """The file in parts of about UNIT_BYTES, where its kind can be read from the middle."""
    if file.kind == ".parquet" and file.compression is None:
        yield from _cut_parquet(file)
    elif file.kind in LINES and file.compression is None and file.size > UNIT_BYTES and not is_wide(file):
        yield from _cut_lines(file)
    else:
        yield file


def _cut_parquet(file: RawFile) -> Iterator[RawFile]:
    """The file in runs of row groups; whole where it cannot be read, which its reader will say."""
    try:
        with pq.ParquetFile(file.path) as parquet:
            is_readable = has_text(parquet.schema_arrow, file.layout.text_field)
            groups = [parquet.metadata.row_group(group) for group in range(parquet.num_row_groups)]
    except (pa.ArrowException, OSError):
        is_readable, groups = False, []
    if not is_readable:
        yield file
        return
    first = rows = rows_before = size = 0
    for number, group in enumerate(groups):
        if number > first and size + group.total_byte_size > UNIT_BYTES:
            yield replace(file, size=size, part=(first, number), rows_before=rows_before)
            first, rows_before, size = number, rows, 0
        rows += group.num_rows
        size += group.total_byte_size
    yield replace(file, size=size, part=(first, len(groups)), rows_before=rows_before)


def _cut_lines(file: RawFile) -> Iterator[RawFile]:
    """The file in runs of whole lines. They are counted here, 2 GB a second: a row keeps its number."""
    first = rows = rows_before = place = 0
    with file.path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            end = chunk.find(b"\n", max(0, first + UNIT_BYTES - place)) + 1
            if end and place + end < file.size:
                yield replace(file, size=place + end - first, part=(first, place + end), rows_before=rows_before)
                first, rows_before = place + end, rows + chunk.count(b"\n", 0, end)
            rows += chunk.count(b"\n")
            place += len(chunk)
    yield replace(file, size=place - first, part=(first, place), rows_before=rows_before)
