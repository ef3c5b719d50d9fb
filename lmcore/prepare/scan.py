"""The scan of a chunk of raw text: a row of facts for each document, without its text."""

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pyarrow as pa

from lmcore.files import write_file
from lmcore.prepare.chunks import Chunk
from lmcore.prepare.documents import Document, Rejection, batch, excerpt, open_parquet
from lmcore.prepare.minhash import sign
from lmcore.prepare.params import PrepareParams
from lmcore.prepare.quality import FILTERS, QualityFilter
from lmcore.prepare.schema import Schema, build_schema, find_reasons

# One row for each document. `reason` is null for a good one, and only a good one has the last three columns; the
# signature is there where near duplicates are looked for.
SCAN_COLUMNS = pa.schema(
    [
        *(("file", pa.large_string()), ("row", pa.int64()), ("reason", pa.string()), ("bytes", pa.int64())),
        *(("excerpt", pa.string()), ("characters", pa.int64()), ("digest", pa.binary(16)), ("signature", pa.binary())),
    ]
)


def scan_chunk(chunk: Chunk, *, params: PrepareParams, place: Path) -> Path:
    """Return the parquet file below `place` with a row of SCAN_COLUMNS for each document, made unless it is there."""
    path = place / f"scan-{chunk.number:06d}.parquet"
    if not path.exists():
        quality = FILTERS[params.quality]
        schema = build_schema(params.min_characters, params.max_characters, quality)
        with write_file(path) as file, open_parquet(file, SCAN_COLUMNS) as table:
            for items in batch(read_normalised(chunk, params)):
                rows = _scan(items, schema, quality, signed=params.near_duplicates is not None)
                table.write_table(pa.Table.from_pylist(rows, schema=SCAN_COLUMNS))
    return path


def read_normalised(chunk: Chunk, params: PrepareParams) -> Iterator[Document | Rejection]:
    """The documents with their texts as the parameters want them; as published unless they say otherwise."""
    for item in chunk.read():
        if isinstance(item, Rejection):
            yield item
            continue
        text = item.text
        if params.newlines == "unix":
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if params.unicode == "nfc":
            text = normalize("NFC", text)
        yield item if text == item.text else Document.of(item.file, text, item.row)


def _scan(
    items: list[Document | Rejection], schema: Schema, quality: QualityFilter, *, signed: bool
) -> list[dict[str, Any]]:
    reasons = iter(find_reasons([item for item in items if isinstance(item, Document)], schema, quality))
    rows = []
    for item in items:
        row: dict[str, Any] = {"file": item.file, "row": item.row, "bytes": item.bytes}
        if isinstance(item, Rejection):
            row |= {"reason": item.reason, "excerpt": item.excerpt}
        elif reason := next(reasons):
            row |= {"reason": reason, "excerpt": excerpt(item.text)}
        else:
            digest = blake2b(item.text.encode(), digest_size=16).digest()
            row |= {"characters": len(item.text), "digest": digest}
            if signed:
                row["signature"] = sign(item.text)
        rows.append(row)
    return rows
