"""Raw files of every format to documents, as a stream: text, JSON lines, tables and parquet, plain or compressed."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmcore.prepare.documents import Document, Rejection, excerpt
from lmcore.prepare.raw_files import (
    HEAD_BYTES,
    MAX_DOCUMENT_BYTES,
    READ_BYTES,
    RawFile,
    UnreadableError,
    is_wide,
    join,
    join_lines,
    require,
    split,
    to_utf8,
)

PARQUET_ROWS = 1000  # in memory at a time
TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
BLANK_LINE = "blank_line"

csv.field_size_limit(MAX_DOCUMENT_BYTES)

Reader = Callable[[RawFile], Iterator[Document | Rejection]]
Records = Callable[[RawFile], Iterator[tuple[int, Any]]]


@dataclass(frozen=True)
class Format:
    """A file format.

    `read` yields the documents of a file. `records` yields the values on its lines with their numbers, where it has
    such: every string in them counts as the text of a benchmark. `cut` yields a large file in parts of about so many
    bytes, which are read side by side; a format without it, and a compressed file, is one part.
    """

    read: Reader
    records: Records | None = None
    cut: Callable[[RawFile, int], Iterator[RawFile]] | None = None


def find_format(file: RawFile) -> Format:
    """Return the format of the file by its suffix; any other than those in FORMATS is plain text."""
    return FORMATS.get(file.kind, PLAIN_TEXT)


def cut_file(file: RawFile, size: int) -> Iterator[RawFile]:
    """Yield the file in parts of about `size` bytes, where its format can be read from the middle."""
    cut = find_format(file).cut
    return iter([file]) if cut is None or file.compression else cut(file, size)


def read_file(file: RawFile, read: Reader | None = None) -> Iterator[Document | Rejection]:
    """The documents of one file, by `read` or as its format is read.

    Where it breaks off, those before the break, and one rejection for the rest.
    """
    try:
        yield from (read or find_format(file).read)(file)
    except UnreadableError as error:
        yield file.reject(str(error))
    except UnicodeError:  # UTF-16 and UTF-32, which are decoded as a stream
        yield file.reject("not_utf8")
    except (pa.ArrowException, csv.Error):
        yield file.reject("damaged")
    except OSError as error:
        if error.errno is not None:  # the system's refusal; pyarrow's own OSErrors have none
            raise
        yield file.reject("damaged")


def _read_text(file: RawFile) -> Iterator[Document | Rejection]:
    """A text file: one document, or those between its separators without the line ends around them."""
    chunks = to_utf8(file.read_bytes())
    if file.layout.separator is None:
        yield file.take(join(chunks), None)
        return
    if file.layout.separator == BLANK_LINE:
        pieces = join_lines(require(split(chunks, b"\n")))
    else:
        pieces = require(split(chunks, file.layout.separator.encode()))
    texts = (piece.strip(b"\r\n") for piece in pieces)
    for row, text in enumerate(filter(None, texts), 1):
        yield file.take(text, row)


def _read_json_lines(file: RawFile) -> Iterator[Document | Rejection]:
    """A record on each line: an object with the text in a field of it, or the text itself as a string."""
    for row, record in read_records(file):
        if isinstance(record, Rejection):
            yield record
            continue
        text = record.get(file.layout.text_field) if isinstance(record, dict) else record
        yield file.take(text if isinstance(text, str) else None, row)


def read_records(file: RawFile) -> Iterator[tuple[int, Any]]:
    """The JSON value on each line of a file with its row; a Rejection in place of what is none."""
    for row, line in enumerate(split(to_utf8(file.read_bytes()), b"\n"), file.rows_before + 1):
        if line is None:
            yield row, Rejection(file.name, row, "too_long", MAX_DOCUMENT_BYTES, "")
        elif line.strip():
            try:
                record = json.loads(line)
            except UnicodeDecodeError:
                record = file.take(line, row)
            except (ValueError, RecursionError):
                beginning = excerpt(line[:HEAD_BYTES].decode(errors="replace"))
                record = Rejection(file.name, row, "broken_json", len(line), beginning)
            yield row, record


def _read_table(file: RawFile, *, delimiter: str) -> Iterator[Document | Rejection]:
    """A table with the names of its columns in the first row; a broken row is one rejection, with all it swallowed."""
    taken = 0

    def lines() -> Iterator[str]:
        nonlocal taken
        for line in require(split(to_utf8(file.read_bytes()), b"\n")):
            taken += len(line) + 1
            # Other bytes than UTF-8 pass through the parser as surrogates, and are found where the text is taken.
            yield line.decode(errors="surrogateescape") + "\n"

    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    columns = next(rows, [])
    if columns.count(file.layout.text_field) != 1:
        raise UnreadableError("no_text")
    place = columns.index(file.layout.text_field)
    while True:
        before = taken
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:  # such as a quote without end; the parser goes on with the next line
            reason = "too_long" if "field larger" in str(error) else "broken_row"
            yield Rejection(file.name, rows.line_num, reason, taken - before, "")
            continue
        if row:
            yield file.take(row[place] if place < len(row) else None, rows.line_num)


def _read_parquet(file: RawFile) -> Iterator[Document | Rejection]:
    """A parquet file with the text in a column of it."""
    name = file.layout.text_field
    source = str(file.path) if file.compression is None else pa.BufferReader(join(file.read_bytes()))
    with pq.ParquetFile(source) as parquet:
        if not has_text(parquet.schema_arrow, name):
            raise UnreadableError("no_text")
        row, groups = file.rows_before, range(*file.part or (parquet.num_row_groups,))
        for group in parquet.iter_batches(PARQUET_ROWS, row_groups=groups, columns=[name]):
            column = group.column(0)
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            for text in column.cast(pa.large_binary()).to_pylist():
                row += 1
                yield file.take(text, row)


def has_text(schema: pa.Schema, name: str) -> bool:
    """Whether there is one column of this name, of texts or of their bytes."""
    if schema.names.count(name) != 1:
        return False
    kind = schema.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in (*TEXT_TYPES, pa.null())


def _cut_parquet(file: RawFile, size: int) -> Iterator[RawFile]:
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
    first = rows = rows_before = taken = 0
    for number, group in enumerate(groups):
        if number > first and taken + group.total_byte_size > size:
            yield replace(file, size=taken, part=(first, number), rows_before=rows_before)
            first, rows_before, taken = number, rows, 0
        rows += group.num_rows
        taken += group.total_byte_size
    yield replace(file, size=taken, part=(first, len(groups)), rows_before=rows_before)


def _cut_lines(file: RawFile, size: int) -> Iterator[RawFile]:
    """The file in runs of whole lines. They are counted here, 2 GB a second: a row keeps its number."""
    if file.size <= size or is_wide(file):
        yield file
        return
    first = rows = rows_before = place = 0
    with file.path.open("rb") as stream:
        while chunk := stream.read(READ_BYTES):
            end = chunk.find(b"\n", max(0, first + size - place)) + 1
            if end and place + end < file.size:
                yield replace(file, size=place + end - first, part=(first, place + end), rows_before=rows_before)
                first, rows_before = place + end, rows + chunk.count(b"\n", 0, end)
            rows += chunk.count(b"\n")
            place += len(chunk)
    yield replace(file, size=place - first, part=(first, place), rows_before=rows_before)


def _refuse(_: RawFile) -> Iterator[Document | Rejection]:
    raise UnreadableError("unsupported_format")


PLAIN_TEXT = Format(_read_text)
JSON_LINES = Format(_read_json_lines, read_records, _cut_lines)
UNSUPPORTED = Format(_refuse)
# By the suffix of the file, without that of its compression.
FORMATS = {
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".csv": Format(partial(_read_table, delimiter=",")),
    ".tsv": Format(partial(_read_table, delimiter="\t")),
    ".parquet": Format(_read_parquet, cut=_cut_parquet),
    **dict.fromkeys((".npy", ".bin", ".pdf", ".docx", ".xlsx"), UNSUPPORTED),
    **dict.fromkeys((".zip", ".xz", ".bz2", ".tar", ".tgz", ".7z"), UNSUPPORTED),
}
