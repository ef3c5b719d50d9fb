"""A raw file as a stream of bytes: decompressed, as UTF-8, in pieces between separators."""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath

import pyarrow as pa

from lmcore.prepare.documents import Document, Rejection, excerpt

READ_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 1 << 30  # parquet's own limit for one value is 2 GiB
HEAD_BYTES = 400  # of a file, to show how it begins
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# UTF-32 first: its little-endian mark begins with UTF-16's.
ENCODINGS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}


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
                for place in range(*self.part, READ_BYTES):
                    yield file.read(min(READ_BYTES, self.part[1] - place))
            return
        with pa.input_stream(str(self.path), compression=self.compression) as stream:
            while chunk := stream.read(READ_BYTES):
                yield chunk


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
    if codec is None or codec == "utf-8-sig":
        yield from chain([head.removeprefix(codecs.BOM_UTF8)], chunks)
    else:
        yield from map(str.encode, codecs.iterdecode(chain([head], chunks), codec))


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
