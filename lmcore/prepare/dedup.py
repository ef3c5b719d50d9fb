"""Deduplication over the whole corpus, in its order: the documents to keep, and an account of the others."""

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lmcore.errors import DataError
from lmcore.prepare.documents import REJECTION_COLUMNS, Rejection, Row, open_parquet, to_table
from lmcore.prepare.minhash import NearDuplicates
from lmcore.prepare.params import PrepareParams

LOST = {"damaged", "broken_row"}  # rejections that may stand for many documents
DUPLICATES = {"duplicate", "near_duplicate"}
EXAMPLES = 5  # of rejected documents in an error message
CACHE_KIBIBYTES = 1 << 16  # of the table of digests in memory; some 60 bytes for each document are on disk


class Deduplicator:
    """Keeps the first of equal documents and counts all: documents = kept + rejected + duplicates.

    Memory does not grow with the corpus, but where near duplicates are looked for.
    """

    def __init__(self, params: PrepareParams, listing: Path, scratch: Path) -> None:
        self.documents = self.kept = self.kept_characters = self.kept_bytes = 0
        self.duplicates: Counter[str] = Counter()  # exact and near ones
        self.rejected: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()  # of the kept ones, in characters, rounded down to a power of two
        self._params = params
        self._examples: list[str] = []
        self._lost_bytes = 0
        self._first = FirstSeen(scratch)
        self._near = None if params.near_duplicates is None else NearDuplicates(params.near_duplicates)
        self._listing = open_parquet(listing, REJECTION_COLUMNS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listing.close()
        self._first.close()

    def select(self, scan: Path) -> NDArray[np.bool_]:
        """Return a mark for each document of a scanned chunk that is kept, (documents,), and list the others."""
        marks = [np.empty(0, bool)]
        with pq.ParquetFile(scan) as table:
            for group in table.iter_batches():
                rejections = [self._find_rejection(row) for row in group.to_pylist()]
                marks.append(np.array([rejection is None for rejection in rejections]))
                self.documents += len(rejections)
                self._count(group.filter(pa.array(marks[-1])))
                self._record([rejection for rejection in rejections if rejection is not None])
        return np.concatenate(marks)

    def _find_rejection(self, row: dict[str, Any]) -> Rejection | None:
        file, number, size = row["file"], row["row"], row["bytes"]
        if row["reason"] is not None:
            return Rejection(file, number, row["reason"], size, row["excerpt"])
        name = Row(file, number).id
        if (first := self._first.find(name, row["digest"])) is not None:
            return Rejection(file, number, "duplicate", size, first)
        if self._near is not None and (first := self._near.find(name, row["signature"])) is not None:
            return Rejection(file, number, "near_duplicate", size, first)
        return None

    def _count(self, kept: pa.RecordBatch) -> None:
        characters = kept["characters"].to_numpy()
        self.kept += len(kept)
        self.kept_characters += int(characters.sum())
        self.kept_bytes += int(kept["bytes"].to_numpy().sum())
        self.lengths.update(1 << length.bit_length() - 1 for length in characters.tolist())

    def _record(self, rejections: list[Rejection]) -> None:
        if not rejections:
            return
        self._listing.write_table(to_table(rejections, REJECTION_COLUMNS))
        reasons = Counter(rejection.reason for rejection in rejections)
        self.duplicates += Counter({reason: reasons.pop(reason) for reason in DUPLICATES & reasons.keys()})
        self.rejected += reasons
        self._lost_bytes += sum(rejection.bytes for rejection in rejections if rejection.reason in LOST)
        examples = [f"{rejection.id}: {rejection.reason}" for rejection in rejections if rejection.reason in reasons]
        self._examples += examples[: EXAMPLES - len(self._examples)]

    def require_enough(self) -> None:
        """Raise DataError, naming reasons and examples, when nothing or too little of the text was kept."""
        if self.documents == 0:
            raise DataError("the corpus is empty: no file of data/raw holds a document")
        rejected, limit = self.rejected.total(), self._params.max_rejected_fraction
        counts = ", ".join(f"{reason} {count:,}" for reason, count in self.rejected.most_common())
        account = f"{rejected:,} of {self.documents:,} documents rejected ({counts}), e.g. {', '.join(self._examples)}"
        if self.kept == 0:
            raise DataError(f"the corpus is empty: {account}; mend these files, give others or loosen prepare's rules")
        # What a damaged file would have held is not known by number.
        if rejected > limit * self.documents or self._lost_bytes > limit * (self.kept_bytes + self._lost_bytes):
            remedy = "mend or remove these files, loosen the rule that rejects them, or raise that limit"
            raise DataError(f"{account}; more than prepare.max_rejected_fraction={limit:g} allows: {remedy}")


class FirstSeen:
    """Which document had a text first: a table on disk, of which so much is in memory as is of use."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "digests.sqlite"
        self._path.unlink(missing_ok=True)
        self._table = sqlite3.connect(self._path, isolation_level=None)
        # Nothing of it outlives the process, so that nothing need be safe against a power cut.
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = {-CACHE_KIBIBYTES}"):
            self._table.execute(f"PRAGMA {setting}")
        self._table.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY, name TEXT) WITHOUT ROWID")
        self._table.execute("BEGIN")

    def find(self, name: str, digest: bytes) -> str | None:
        """The name of the document that had this text first; None makes this one the first."""
        try:
            if self._table.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, name)).rowcount:
                return None
            return str(self._table.execute("SELECT name FROM seen WHERE digest = ?", (digest,)).fetchone()[0])
        except sqlite3.OperationalError as error:
            raise DataError(f"{self._path} cannot grow ({error}): free some space, or raise ulimit -f") from None

    def close(self) -> None:
        """Free the memory and the file."""
        self._table.close()
        self._path.unlink(missing_ok=True)
