"""Raw files of every kind to documents, as a stream: text, JSON lines, tables and parquet, plain or compressed."""

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmcore.prepare.documents import Document, Rejection, excerpt

CHUNK_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 1 << 30  # parquet's own limit for one value is 2 GiB
PARQUET_ROWS = 1000  # in memory at a time
TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
HEAD_BYTES = 400  # of a file, to show how it begins

BLANK_LINE = "blank_line"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
UNSUPPORTED_SUFFIXES = frozenset(
    {*(".npy", ".bin", ".pdf", ".docx", ".xlsx"), *(".zip", ".xz", ".bz2", ".tar", ".tgz", ".7z")}
)
# UTF-32 first: its little-endian mark begins with UTF-16's.
ENCODINGS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}

csv.field_size_limit(MAX_DOCUMENT_BYTES)


@dataclass(frozen=True)
class Layout:
    """Where the text is: in which field of a record, and what parts the documents of a text file."""

    text_field: str = "text"
    separator: str | None = None  # blank_line, or a text such as <|endoftext|>; None: a file is one document


class UnreadableError(Exception):
    """The rest of a file cannot be read; the message is the reason of refusal."""


@dataclass(frozen=True)
class RawFile:
    """One file as the manifest lists it."""

    path: Path
    name: str
    layout: Layout
    size: int  # bytes, of the part where it is one
    part: tuple[int, int] | None = None  # [first, end): which row groups of a parquet file, which bytes of JSON lines
    rows_before: int = 0  # the part
    kind: str = field(init=False)  # its suffix without that of the compression
    compression: str | None = field(init=False)

    def __post_init__(self) -> None:
        name = PurePosixPath(self.name.lower())
        compression = COMPRESSIONS.get(name.suffix)
        object.__setattr__(self, "compression", compression)
        object.__setattr__(self, "kind", (name.with_suffix("") if compression else name).suffix)

    def reject(self, reason: str) -> Rejection:
        """The file, or the rest of it, as one rejection."""
        with self.path.open("rb") as file:
            beginning = file.read(HEAD_BYTES)
        return Rejection(self.name, None, reason, self.size, excerpt(beginning.decode(errors="replace")))

    def take(self, text: bytes | str | None, row: int | None) -> Document | Rejection:
        """One document, or why it is none: None where a record has no text, `str` as JSON has it."""
        if text is None:
            return Rejection(self.name, row, "no_text", 0, "")
        try:
            return Document.of(self.name, text if isinstance(text, str) else text.decode(), row)
        except UnicodeError:  # a lone surrogate in JSON, or other bytes than UTF-8
            raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
            return Rejection(self.name, row, "not_utf8", len(raw), excerpt(raw[:HEAD_BYTES].decode(errors="replace")))

    def read_bytes(self) -> Iterator[bytes]:
        """The bytes of the file, decompressed, or of its part, a chunk at a time."""
        if self.part is not None:
            with self.path.open("rb") as file:
                file.seek(self.part[0])
                for place in range(*self.part, CHUNK_BYTES):
                    yield file.read(min(CHUNK_BYTES, self.part[1] - place))
            return
        with pa.input_stream(str(self.path), compression=self.compression) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk


Reader = Callable[[RawFile], Iterator[Document | Rejection]]


def read_file(file: RawFile, read: Reader | None = None) -> Iterator[Document | Rejection]:
    """The documents of one file, by `read` or as its kind is read.

    Where it breaks off, those before the break, and one rejection for the rest.
    """
    if file.kind in UNSUPPORTED_SUFFIXES:
        yield file.reject("unsupported_format")
        return
    read = read or READERS.get(file.kind, _read_text)
    try:
        yield from read(file)
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
            yield row, _parse_json(file, line, row)


def _parse_json(file: RawFile, line: bytes, row: int) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError:
        return file.take(line, row)
    except (ValueError, RecursionError):
        beginning = excerpt(line[:HEAD_BYTES].decode(errors="replace"))
        return Rejection(file.name, row, "broken_json", len(line), beginning)


def _read_table(file: RawFile) -> Iterator[Document | Rejection]:
    """A table with the names of its columns in the first row; a broken row is one rejection, with all it swallowed."""
    taken = 0

    def lines() -> Iterator[str]:
        nonlocal taken
        for line in require(split(to_utf8(file.read_bytes()), b"\n")):
            taken += len(line) + 1
            # Other bytes than UTF-8 pass through the parser as surrogates, and are found where the text is taken.
            yield line.decode(errors="surrogateescape") + "\n"

    rows = csv.reader(lines(), delimiter=DELIMITERS[file.kind], strict=True)
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


LINES = {".jsonl", ".ndjson"}
READERS = {
    **dict.fromkeys(LINES, _read_json_lines),
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
}


def is_wide(file: RawFile) -> bool:
    """Whether the file's byte order mark says UTF-16 or UTF-32, where a line's end is more than a byte."""
    with file.path.open("rb") as stream:
        head = stream.read(max(map(len, ENCODINGS)))
    return any(head.startswith(mark) for mark, codec in ENCODINGS.items() if codec != "utf-8-sig")


def to_utf8(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The text as UTF-8, whatever its byte order mark says it is. Raises UnicodeError where that is not true."""
    head = b""
    while len(head) < max(map(len, ENCODINGS)) and (chunk := next(chunks, b"")):
        head += chunk
    codec = next((codec for mark, codec in ENCODINGS.items() if head.startswith(mark)), None)
    if codec in {None, "utf-8-sig"}:
        yield head.removeprefix(codecs.BOM_UTF8)
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(str(codec))()
    yield decoder.decode(head).encode()
    for chunk in chunks:
        yield decoder.decode(chunk).encode()
    yield decoder.decode(b"", final=True).encode()


def join(chunks: Iterable[bytes]) -> bytes:
    """All of it. Raises UnreadableError beyond MAX_DOCUMENT_BYTES, without reading further."""
    parts, size = [], 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_DOCUMENT_BYTES:
            raise UnreadableError("too_long")
    return b"".join(parts)


def split(chunks: Iterable[bytes], separator: bytes) -> Iterator[bytes | None]:
    """The pieces between separators, the last one too; None for one longer than MAX_DOCUMENT_BYTES.

    No more than one piece is in memory, and a long one costs no more than its length.
    """
    parts: list[bytes] = []
    size, tail = 0, b""  # the tail may be the beginning of a separator
    for chunk in chunks:
        *ended, rest = (tail + chunk).split(separator)
        for piece in ended:
            yield b"".join([*parts, piece]) if size + len(piece) <= MAX_DOCUMENT_BYTES else None
            parts, size = [], 0
        tail = rest[max(0, len(rest) - len(separator) + 1) :]
        size += len(rest) - len(tail)
        parts.append(rest[: len(rest) - len(tail)])
        if size > MAX_DOCUMENT_BYTES:
            parts = []
    yield b"".join([*parts, tail]) if size + len(tail) <= MAX_DOCUMENT_BYTES else None


def join_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines between blank ones, joined again."""
    block: list[bytes] = []
    size = 0
    for line in chain(lines, [b""]):
        if line.strip():
            block.append(line)
            size += len(line) + 1
            if size > MAX_DOCUMENT_BYTES:
                raise UnreadableError("too_long")
        elif block:
            yield b"\n".join(block)
            block, size = [], 0


def require(pieces: Iterable[bytes | None]) -> Iterator[bytes]:
    """The pieces. Raises UnreadableError at one that is too long."""
    for piece in pieces:
        if piece is None:
            raise UnreadableError("too_long")
        yield piece
