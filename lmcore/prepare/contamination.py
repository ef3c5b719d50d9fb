"""The text of a benchmark, to measure how much of it lies in the training text."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lmcore.errors import DataError, ParameterError
from lmcore.files import named_path
from lmcore.prepare.documents import Document, Rejection, batch
from lmcore.prepare.overlap import SEQUENCE_WORDS, Hashes, collect_sequences
from lmcore.prepare.raw_files import Layout, RawFile
from lmcore.prepare.readers import Records, find_format, read_file
from lmcore.runtime.process_pool import Executor


@dataclass(frozen=True)
class Evaluation:
    """A benchmark's file: JSON lines, of which every string in every record counts, or any other as documents."""

    path: Path

    def read(self) -> Iterator[list[str]]:
        """The texts, a batch at a time. Raises DataError where one cannot be read."""
        file = RawFile(self.path, self.path.name, Layout(), self.path.stat().st_size)
        records = find_format(file).records
        for items in batch(read_file(file, partial(_read_strings, records) if records else None)):
            for item in items:
                if isinstance(item, Rejection):
                    place = self.path if item.row is None else f"{self.path}:{item.row}"
                    raise DataError(f"prepare.contamination: {place}: {item.reason}: mend the file")
            yield [item.text for item in items if isinstance(item, Document)]


def _read_strings(records: Records, file: RawFile) -> Iterator[Document | Rejection]:
    for row, record in records(file):
        if isinstance(record, Rejection):
            yield record
        else:
            yield from (file.take(text, row) for text in iterate_strings(record))


def iterate_strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys of objects apart."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from iterate_strings(part)


def collect_evaluation(name: str, executor: Executor) -> Hashes:
    """The sequences of the file that `prepare.contamination` names, as `collect_sequences` gives them.

    Raises ParameterError without a file, and DataError for one that cannot be read or has no sequence.
    """
    path = named_path(name)
    if not path.is_file():
        raise ParameterError(
            f"prepare.contamination={name!r}: {path} is no file; a relative path begins at dvc.yaml's folder"
        )
    sequences = collect_sequences([Evaluation(path)], executor)
    if not len(sequences):
        raise DataError(
            f"prepare.contamination: {path} has no text of {SEQUENCE_WORDS} words or more, so that nothing can be "
            f"looked for: give another file"
        )
    return sequences
