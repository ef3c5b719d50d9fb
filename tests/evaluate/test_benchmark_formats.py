"""Items from the forms that benchmarks are published in, and one line for what is none."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.errors import DataError, ParameterError
from lmcore.evaluate.benchmark_formats import Item, parse_item, read_items
from lmcore.evaluate.benchmarks import list_formats

HELLASWAG = {
    "ind": 24,
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he",
    "endings": ["is using wrap.", "is ripping [substeps] level  tiles off.", " holds a cube [title] End."],
    "label": 2,
}
ARC_CHOICES = {"text": ["dry palms", "wet palms"], "label": ["A", "B"]}
RECORDS = {
    "hellaswag": (
        HELLASWAG,
        Item(
            "Roof shingle removal: A man is sitting on a roof. He",
            ["is using wrap.", "is ripping level tiles off.", "holds a cube. End."],
            2,
        ),
    ),
    "hellaswag, put together": (
        {"ctx": "Roof: A man sits. he", "endings": ["falls.", "stands."], "label": "1"},
        Item("Roof: A man sits. he", ["falls.", "stands."], 1),
    ),
    "piqa": (
        {"goal": "Cool it.", "sol1": "Freeze it", "sol2": "Heat it", "label": 0},
        Item("Question: Cool it.\nAnswer:", ["Freeze it", "Heat it"], 0),
    ),
    "arc on Hugging Face": (
        {"id": "1", "question": "Which rub?", "choices": ARC_CHOICES, "answerKey": "B"},
        Item("Question: Which rub?\nAnswer:", ["dry palms", "wet palms"], 1),
    ),
    "arc": (
        {
            "question": {"stem": "Which?", "choices": [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}]},
            "answerKey": "2",
        },
        Item("Question: Which?\nAnswer:", ["x", "y"], 1),
    ),
    "lambada": ({"text": "He  gave it to Tom"}, Item("He  gave it to", ["Tom"], 0)),
    "our own": ({"context": " as is ", "choices": [" a", ""], "gold": 1}, Item(" as is ", [" a", ""], 1)),
}
each_form = pytest.mark.parametrize(("record", "item"), RECORDS.values(), ids=RECORDS)


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@each_form
def test_forms(record: dict[str, Any], item: Item, tmp_path: Path) -> None:
    assert list(read_items(write(tmp_path / "a.jsonl", record, record), list_formats())) == [item, item]


@pytest.mark.parametrize("name", ["piqa", "arc on Hugging Face", "hellaswag"])
def test_parquet_is_the_same(name: str, tmp_path: Path) -> None:
    record, item = RECORDS[name]
    pq.write_table(pa.Table.from_pylist([record] * 3), tmp_path / "a.parquet")
    assert list(read_items(tmp_path / "a.parquet", list_formats())) == [item] * 3


@given(st.lists(st.text(alphabet="ab []title\n.É", max_size=30), min_size=5, max_size=5))
def test_hellaswag_is_put_together_as_by_lm_evaluation_harness(texts: list[str]) -> None:
    label, first, second, *endings = texts
    record = {"activity_label": label, "ctx_a": first, "ctx_b": second, "ctx": "", "endings": endings, "label": "1"}
    # What its process_docs does to each document; a data set for each example would take a minute.
    from lm_eval.tasks.hellaswag.utils import preprocess  # takes seconds

    query = preprocess(label + ": " + first + " " + second.capitalize())
    assert parse_item(record, list_formats()) == Item(query, [preprocess(ending) for ending in endings], 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"ctx": "a", "endings": ["b"], "label": 0}\n\n{"ctx"', r"a.jsonl:3: not a line of JSON in UTF-8"),
        (b"\xff\n", r"a.jsonl:1: not a line of JSON in UTF-8"),
        (b'{"ctx": "a", "endings": ["b", "c"], "label": 2}', r"a.jsonl:1: label=2: must be a whole number from 0 to 1"),
        (b'{"ctx": "a", "endings": ["b", "c"], "label": -1}', r"label=-1: must be"),
        (b'{"ctx": "a", "endings": ["b", "c"], "label": ""}', r"label='': must be"),
        (b'{"ctx": "a", "endings": ["b", "c"], "label": true}', r"label=True: must be"),
        (b'{"ctx": "a", "endings": [], "label": 0}', r"endings must be a list of one choice or more"),
        (b'{"ctx": "a", "endings": [3], "label": 0}', r"a.jsonl:1: 3 must be text"),
        (b'{"context": 3, "choices": ["a"], "gold": 0}', r"the context and the choices must be text"),
        (b'{"question": "a", "choices": {"text": ["x"], "label": ["A"]}, "answerKey": "E"}', r"answerKey='E': must be"),
        (b'{"question": {"stem": "a", "choices": [3]}, "answerKey": "E"}', r"must have the form of ARC"),
        (b'{"text": "word"}', r"text must have a last word"),
        (b'{"prompt": "a"}', r"a.jsonl:1: has the fields prompt; known are records with choices, context, gold; ctx,"),
        (b"[1, 2]", r"a.jsonl:1: must be an object"),
        (b"\n\n", r"a.jsonl holds no items: give a file with one on each line"),
        (b"", r"a.jsonl holds no items"),
    ],
)
def test_what_is_no_item_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_items(path, list_formats()))
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"a.jsonl is no file; a relative path begins at dvc.yaml's folder"):
        list(read_items(tmp_path / "a.jsonl", list_formats()))
    with pytest.raises(ParameterError, match=r"a.txt is neither a .jsonl nor a .parquet file"):
        list(read_items(tmp_path / "a.txt", list_formats()))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 is what it begins with")
    with pytest.raises(DataError, match=r"a.parquet is damaged \("):
        list(read_items(tmp_path / "a.parquet", list_formats()))
