"""The record formats of published benchmarks, read as multiple-choice items.

Texts are put together as lm-evaluation-harness does for the task of the same name (lm_eval/tasks).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lmcore.errors import DataError, ParameterError

BATCH_ROWS = 1000  # of a parquet file, in memory at a time

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """A context, the choices of what follows it after a space, and the index of the right one.

    With one choice alone the question is whether the model would write it.
    """

    context: str
    choices: list[str]
    gold: int


class RecordFormat(NamedTuple):
    """A format of records: the fields by which it is recognised, and the reader of a record."""

    fields: frozenset[str]
    parse: Callable[[Record], Item]  # raises UnsuitableError


class UnsuitableError(Exception):
    """A record is no item; the message says why."""


def read_items(path: Path, formats: Sequence[RecordFormat]) -> Iterator[Item]:
    """Yield the items of a .jsonl or .parquet file, each in the first of the `formats` whose fields it has.

    Raises ParameterError for a file that does not exist or is of another kind, DataError, naming the line, for one that
    holds something else, and for one without items.
    """
    readers = {".jsonl": _read_lines, ".parquet": _read_rows}
    if path.suffix not in readers:
        raise ParameterError(f"evaluate.suites: {path} is neither a .jsonl nor a .parquet file: give one")
    if not path.is_file():
        raise ParameterError(f"evaluate.suites: {path} is no file; a relative path begins at dvc.yaml's folder")
    number = 0
    for number, record in readers[path.suffix](path):
        try:
            yield parse_item(record, formats)
        except UnsuitableError as error:
            raise DataError(f"{path}:{number}: {error}") from None
    if not number:
        raise DataError(f"{path} holds no items: give a file with one on each line")


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the JSON value of each line; empty lines are skipped."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}:{number}: not a line of JSON in UTF-8 ({error}): mend the file") from None


def _read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the record of each row."""
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the system's refusal; pyarrow's own OSErrors have none
            raise
        raise DataError(f"{path} is damaged ({' '.join(str(error).split())}): fetch it again") from None


def parse_item(record: Any, formats: Sequence[RecordFormat]) -> Item:
    """Return the item of a record in any of the `formats`. Raises UnsuitableError."""
    if not isinstance(record, dict):
        raise UnsuitableError(f"must be an object with the fields of an item, is {str(record)[:40]!r}")
    known = next((known for known in formats if known.fields <= record.keys()), None)
    if known is None:
        needed = "; ".join(", ".join(sorted(known.fields)) for known in formats)
        raise UnsuitableError(f"has the fields {', '.join(record) or 'of none'}; known are records with {needed}")
    item = known.parse(record)
    if not all(isinstance(text, str) for text in (item.context, *item.choices)):
        raise UnsuitableError("the context and the choices must be text")
    return item


def _parse_plain(record: Record) -> Item:
    """The plain format: `context`, `choices` and `gold`, as they are."""
    choices = _require_list(record["choices"], "choices")
    return Item(record["context"], choices, _choose(record["gold"], len(choices), "gold"))


def _parse_hellaswag(record: Record) -> Item:
    """HellaSwag (Zellers et al., arXiv:1905.07830): the published format, or `ctx` alone, already put together."""
    context = record["ctx"]
    if {"ctx_a", "ctx_b"} <= record.keys():
        context = f"{_require_text(record['ctx_a'])} {_require_text(record['ctx_b']).capitalize()}"
    if "activity_label" in record:
        context = f"{record['activity_label']}: {context}"
    endings = _require_list(record["endings"], "endings")
    gold = _choose(record["label"], len(endings), "label")
    return Item(_clean_wikihow(context), [_clean_wikihow(ending) for ending in endings], gold)


def _clean_wikihow(text: Any) -> str:
    """Return the text without the marks in brackets of HellaSwag's part from WikiHow."""
    text = _require_text(text).strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _parse_piqa(record: Record) -> Item:
    """PIQA (Bisk et al., arXiv:1911.11641)."""
    choices = [record["sol1"], record["sol2"]]
    return Item(f"Question: {_require_text(record['goal'])}\nAnswer:", choices, _choose(record["label"], 2, "label"))


def _parse_arc(record: Record) -> Item:
    """ARC (Clark et al., arXiv:1803.05457), as published or as on Hugging Face."""
    match record:
        case {"question": {"stem": question, "choices": [*options]}} if all(map(_is_option, options)):
            labels, choices = [option["label"] for option in options], [option["text"] for option in options]
        case {"question": str(question), "choices": {"label": [*labels], "text": [*choices]}}:
            pass
        case _:
            raise UnsuitableError("question and choices must have the form of ARC")
    if len(labels) != len(choices) or len({*map(str, labels)}) < len(labels):
        raise UnsuitableError("choices must have a label each, no two of them alike")
    if record["answerKey"] not in labels:
        raise UnsuitableError(f"answerKey={record['answerKey']!r}: must be one of {', '.join(map(str, labels))}")
    return Item(f"Question: {question}\nAnswer:", choices, labels.index(record["answerKey"]))


def _is_option(value: Any) -> bool:
    return isinstance(value, dict) and {"label", "text"} <= value.keys()


def _parse_lambada(record: Record) -> Item:
    """LAMBADA (Paperno et al., arXiv:1606.06031): the last word of a text; one choice."""
    context, _, word = _require_text(record["text"]).rpartition(" ")
    if not context or not word:
        raise UnsuitableError("text must have a last word, after a space")
    return Item(context, [word], 0)


def _require_text(value: Any) -> str:
    if not isinstance(value, str):
        raise UnsuitableError(f"{value!r:.40} must be text")
    return value


def _require_list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UnsuitableError(f"{field} must be a list of one choice or more")
    return value


def _choose(label: Any, count: int, field: str) -> int:
    """Return the index of the right choice from a number or its digits."""
    number = int(label) if isinstance(label, str) and label.isdecimal() and len(label) < 10 else label
    if type(number) is not int or not 0 <= number < count:
        raise UnsuitableError(f"{field}={label!r}: must be a whole number from 0 to {count - 1}")
    return number


PLAIN = RecordFormat(frozenset({"context", "choices", "gold"}), _parse_plain)
HELLASWAG = RecordFormat(frozenset({"ctx", "endings", "label"}), _parse_hellaswag)
PIQA = RecordFormat(frozenset({"goal", "sol1", "sol2", "label"}), _parse_piqa)
ARC = RecordFormat(frozenset({"question", "answerKey"}), _parse_arc)
LAMBADA = RecordFormat(frozenset({"text"}), _parse_lambada)
