"""Documents: what passes through the prepare stage, written to parquet and read back, a bounded batch at a time."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from lmcore.errors import ArtifactError
from lmcore.files import sha256_file, sync

REMEDY = "run the prepare stage (dvc repro prepare), or fetch it (dvc pull)"
BATCH_ROWS = 10_000
BATCH_CHARACTERS = 1 << 24
PART_BYTES = 32 << 20  # of text in one parquet file, which one process works on at a time
EXCERPT_CHARACTERS = 80

# large_string counts in 64 bits: a batch may hold more than 2 GiB.
DOCUMENT_COLUMNS = pa.schema([("id", pa.large_string()), ("text", pa.large_string()), ("bytes", pa.int64())])
TEXT_COLUMN = DOCUMENT_COLUMNS.get_field_index("text")
REJECTION_COLUMNS = pa.schema(
    {"file": pa.string(), "row": pa.int64(), "reason": pa.string(), "bytes": pa.int64(), "excerpt": pa.string()}
)


@dataclass(frozen=True, slots=True)
class Row:
    """A place in the raw text: a file, or the `row` (line, number) in it, from 1, where the file holds several."""

    file: str
    row: int | None

    @property
    def id(self) -> str:
        """Its name in the corpus: no other has it, unless a file's own name ends like that of a row."""
        return self.file if self.row is None else f"{self.file}:{self.row}"


@dataclass(frozen=True, slots=True)
class Document(Row):
    """One text, exactly as published; `bytes` is its length as UTF-8."""

    text: str
    bytes: int

    @classmethod
    def of(cls, file: str, text: str, row: int | None = None) -> Self:
        """The document with its bytes counted. Raises UnicodeError for a lone surrogate, which UTF-8 cannot say."""
        return cls(file, row, text, len(text) if text.isascii() else len(text.encode()))


@dataclass(frozen=True, slots=True)
class Rejection(Row):
    """A document that was left out: where it lies, why, and how it begins."""

    reason: str
    bytes: int
    excerpt: str


Item = TypeVar("Item", Document, Document | Rejection)
NamedText = tuple[str, str]  # a document's id and text
NOT_OF_THE_TYPE = re.compile(r"(\.gz|\.zst)?(:\d+)?(#\w+)?$")  # compression, row, and the side of a cut


def file_type(document_id: str) -> str:
    """The suffix of the file that a document lay in, without that of its compression: `.jsonl` of logs.jsonl.gz:3."""
    return PurePosixPath(NOT_OF_THE_TYPE.sub("", document_id.lower())).suffix


def excerpt(text: str) -> str:
    """The first printable characters of a text, for a person to recognise it."""
    return "".join(filter(str.isprintable, text[: 4 * EXCERPT_CHARACTERS]))[:EXCERPT_CHARACTERS]


def batch(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in order, in lists that end once they hold BATCH_ROWS items or BATCH_CHARACTERS of text."""
    some: list[Item] = []
    characters = 0
    for item in items:
        some.append(item)
        characters += len(item.text) if isinstance(item, Document) else 0
        if len(some) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield some
            some, characters = [], 0
    if some:
        yield some


class DocumentWriter:
    """Documents of one source as parquet parts, part-00000.parquet and so on; equal documents give equal bytes."""

    def __init__(self, folder: Path, source: str) -> None:
        folder.mkdir(parents=True)
        self._columns = DOCUMENT_COLUMNS.with_metadata({"source": source})
        self._folder = folder
        self._part: pq.ParquetWriter | None = None
        self._parts = self._part_bytes = 0
        self.documents = self.bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_part()

    def write(self, documents: list[Document]) -> None:
        """Append the documents as one row group, which comes back as one batch."""
        if not documents:
            return
        if self._part is None or self._part_bytes >= PART_BYTES:
            self._end_part()
            self._path = self._folder / f"part-{self._parts:05d}.parquet"
            self._part = open_parquet(self._path, self._columns)
            self._parts += 1
            self._part_bytes = 0
        self._part.write_table(to_table(documents, self._columns))
        size = sum(document.bytes for document in documents)
        self._part_bytes += size
        self.bytes += size
        self.documents += len(documents)

    def _end_part(self) -> None:
        if self._part is not None:
            self._part.close()
            sync(self._path)  # a killed stage goes on from it, also after a power cut


def open_parquet(file: Path | BinaryIO, columns: pa.Schema) -> pq.ParquetWriter:
    """A parquet file to write tables to. No dictionaries or statistics: hardly two texts are equal."""
    return pq.ParquetWriter(
        file, columns, compression="zstd", use_dictionary=False, write_statistics=False, write_page_checksum=True
    )


def to_table(records: Sequence[Document | Rejection], columns: pa.Schema) -> pa.Table:
    """The records as rows, a column for each of their fields that `columns` names."""
    return pa.table({name: [getattr(record, name) for record in records] for name in columns.names}, schema=columns)


def iterate_named_texts(folder: Path) -> Iterator[list[NamedText]]:
    """The texts of one prepared split, each with its document's id, in order, in the batches that they were written in.

    Raises ArtifactError when the split is missing or a part of it is damaged.
    """
    for part in list_parts(folder):
        for group in part.read_groups(["id", "text"]):
            yield list(zip(group["id"].to_pylist(), group["text"].to_pylist(), strict=True))


@dataclass(frozen=True)
class DocumentPart:
    """One parquet file of a split: what one process works on at a time."""

    path: Path

    @property
    def size(self) -> int:
        """Bytes of text, as the file itself tells. Raises ArtifactError for a damaged file."""
        with self._opened() as file:
            groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
            return sum(group.column(TEXT_COLUMN).total_uncompressed_size for group in groups)

    @property
    def source(self) -> str:
        """The name of the source that the documents come from, as the file's metadata has it; without it, `text`."""
        with self._opened() as file:
            metadata: dict[bytes, bytes] = file.schema_arrow.metadata or {}
            return metadata.get(b"source", b"text").decode()

    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        return sha256_file(self.path)

    def read(self) -> Iterator[list[str]]:
        """The texts, a batch at a time. Raises ArtifactError for a damaged file."""
        for group in self.read_groups(["text"]):
            yield group["text"].to_pylist()

    def read_groups(self, columns: list[str]) -> Iterator[pa.Table]:
        """These columns, a row group at a time. Raises ArtifactError for a damaged file."""
        with self._opened() as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns)

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                yield file
        except (pa.ArrowInvalid, OSError) as error:
            if getattr(error, "errno", None) is not None:  # the system's refusal; pyarrow's own OSErrors have none
                raise
            raise ArtifactError(f"{self.path} is damaged ({' '.join(str(error).split())}): {REMEDY}") from None


def list_parts(folder: Path) -> list[DocumentPart]:
    """The parts of one prepared split, in order. Raises ArtifactError when it is missing."""
    parts = [DocumentPart(path) for path in sorted(folder.glob("part-*.parquet"))]
    if not parts:
        raise ArtifactError(f"{folder} holds no documents: {REMEDY}")
    return parts
