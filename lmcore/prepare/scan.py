"""The first look at a unit of raw text: what each document is, and what is wrong with it; the text stays behind."""

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pyarrow as pa

from lmcore.files import write_file
from lmcore.prepare.documents import Document, Rejection, batch, excerpt, open_parquet
from lmcore.prepare.gopher import GOPHER
from lmcore.prepare.minhash import sign
from lmcore.prepare.params import PrepareParams
from lmcore.prepare.schema import Schema, build_schema, find_reasons
from lmcore.prepare.units import Unit

# One row for each document. `reason` is null for a good one, and only a good one has the last three columns; the
# signature is there where near duplicates are looked for.
SURVEY_COLUMNS = pa.schema(
    [
        *(("file", pa.large_string()), ("row", pa.int64()), ("reason", pa.string()), ("bytes", pa.int64())),
        *(("excerpt", pa.string()), ("characters", pa.int64()), ("digest", pa.binary(16)), ("signature", pa.binary())),
    ]
)


def survey_unit(unit: Unit, *, params: PrepareParams, place: Path) -> Path:
    """The parquet file below `place` with a row of SURVEY_COLUMNS for each document, made unless it is there."""
    path = place / f"survey-{unit.number:06d}.parquet"
    if not path.exists():
        schema = build_schema(
            params.min_characters, params.max_characters, GOPHER if params.quality == "gopher" else {}
        )
        with write_file(path) as file, open_parquet(file, SURVEY_COLUMNS) as table:
            for items in batch(read_normalised(unit, params)):
                table.write_table(pa.Table.from_pylist(_survey(items, schema, params), schema=SURVEY_COLUMNS))
    return path


def read_normalised(unit: Unit, params: PrepareParams) -> Iterator[Document | Rejection]:
    """The documents with their texts as the parameters want them; as published unless they say otherwise."""
    for item in unit.read():
        if isinstance(item, Rejection):
            yield item
            continue
        text = item.text
        if params.newlines == "unix":
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if params.unicode == "nfc":
            text = normalize("NFC", text)
        yield item if text == item.text else Document.of(item.file, text, item.row)


def _survey(items: list[Document | Rejection], schema: Schema, params: PrepareParams) -> list[dict[str, Any]]:
    reasons = iter(find_reasons([item for item in items if isinstance(item, Document)], schema))
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
            if params.near_duplicates is not None:
                row["signature"] = sign(item.text)
        rows.append(row)
    return rows
