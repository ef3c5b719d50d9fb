"""The text of a benchmark, to measure how much of it lies in the training text."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcore.corpus.documents import Document, Rejection, batch
from lmcore.corpus.formats import Layout, RawFile, read_file, require, split, to_utf8
from lmcore.errors import DataError, ParameterError
from lmcore.files import named_path


@dataclass(frozen=True)
class Evaluation:
    """A benchmark's file: JSON lines, of which every string in every record counts, or any other as documents."""

    path: Path

    def read(self) -> Iterator[list[str]]:
        """The texts, a batch at a time. Raises DataError where one cannot be read."""
        file = RawFile(self.path, self.path.name, Layout(), self.path.stat().st_size)
        if file.kind in {".jsonl", ".ndjson"}:
            yield from self._read_records(file)
            return
        for items in batch(read_file(file)):
            for item in items:
                if isinstance(item, Rejection):
                    raise DataError(f"prepare.contamination: {self.path}: {item.id}: {item.reason}: mend the file")
            yield [item.text for item in items if isinstance(item, Document)]

    def _read_records(self, file: RawFile) -> Iterator[list[str]]:
        for row, line in enumerate(require(split(to_utf8(file.read_bytes()), b"\n")), 1):
            try:
                yield list(iterate_strings(json.loads(line))) if line.strip() else []
            except ValueError as error:
                raise DataError(f"prepare.contamination: {self.path}: line {row}: {error}: mend the file") from None


def iterate_strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys of objects apart."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from iterate_strings(part)


def open_evaluation(name: str) -> Evaluation:
    """The file that `prepare.contamination` names. Raises ParameterError without one."""
    path = named_path(name)
    if not path.is_file():
        raise ParameterError(
            f"prepare.contamination={name!r}: {path} is no file; a relative path begins at dvc.yaml's folder"
        )
    return Evaluation(path)
