"""Documents read from raw files, and written to and from parquet."""

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.errors import ArtifactError
from lmcore.prepare import documents as documents_module
from lmcore.prepare.documents import (
    Document,
    DocumentWriter,
    batch,
    excerpt,
    file_type,
    iterate_named_texts,
    list_parts,
)

TEXT = "naïve\r\n\x0cpage two\r\tend\u2028\U0001f600"


def test_an_excerpt_is_short_and_printable():
    assert excerpt("\n\x00 a\tb" + 100 * "x") == " ab" + 77 * "x"
    assert excerpt(100 * "\n" + "late") == "late"


@given(st.lists(st.text(max_size=9)), st.integers(1, 4), st.integers(1, 12))
def test_batches_are_bounded_and_lose_nothing(texts, rows, characters):
    documents = [Document.of("", text) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_module, "BATCH_ROWS", rows)
        patch.setattr(documents_module, "BATCH_CHARACTERS", characters)
        batches = list(batch(documents))
    assert [document for some in batches for document in some] == documents
    for some in batches:
        assert 1 <= len(some) <= rows
        assert sum(len(document.text) for document in some[:-1]) < characters


def test_documents_come_back_in_the_batches_they_were_given(tmp_path):
    batches = [[Document.of("a", TEXT), Document.of("b", "")], [Document.of("c", "c")]]
    with DocumentWriter(tmp_path / "train", "own") as writer:
        for some in [*batches, []]:
            writer.write(some)
    size = len(TEXT.encode()) + 1
    assert (writer.documents, writer.bytes) == (3, size)
    assert [part.source for part in list_parts(tmp_path / "train")] == ["own"]
    assert list(iterate_named_texts(tmp_path / "train")) == [[("a", TEXT), ("b", "")], [("c", "c")]]
    assert [texts for part in list_parts(tmp_path / "train") for texts in part.read()] == [[TEXT, ""], ["c"]]
    assert list(iterate_named_texts(tmp_path / "train")) == [[("a", TEXT), ("b", "")], [("c", "c")]]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("a/b.py", ".py"), ("A.TXT", ".txt"), ("logs.jsonl:12", ".jsonl"), ("x.csv.gz:3", ".csv")),
        *(("x.txt.zst#train", ".txt"), ("x.jsonl:3#validation", ".jsonl"), ("a.d/README", ""), ("a.tar.gz", ".tar")),
    ],
)
def test_the_type_of_a_file_is_in_its_documents_names(name, kind):
    assert file_type(name) == kind
    assert file_type(Document.of(name, "").id) == kind


def test_parts_roll_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(documents_module, "PART_BYTES", 10)
    with DocumentWriter(tmp_path / "train", "own") as writer:
        for number in range(12):
            writer.write([Document.of(str(number), f"text {number:02}")])
    names = sorted(path.name for path in (tmp_path / "train").iterdir())
    assert names == [f"part-{number:05}.parquet" for number in range(6)]
    assert list(iterate_named_texts(tmp_path / "train")) == [
        [(str(number), f"text {number:02}")] for number in range(12)
    ]


def test_a_part_says_its_source(tmp_path):
    with DocumentWriter(tmp_path / "train", "tinyshakespeare") as writer:
        writer.write([Document.of("a", TEXT)])
    (part,) = list_parts(tmp_path / "train")
    assert part.source == "tinyshakespeare"
    pq.write_table(pq.read_table(part.path).replace_schema_metadata({}), part.path)
    assert part.source == "text"


def test_missing_and_damaged_parts_are_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"nowhere holds no documents: run the prepare stage"):
        list(iterate_named_texts(tmp_path / "nowhere"))
    with DocumentWriter(tmp_path / "train", "own") as writer:
        writer.write([Document.of("a", TEXT)])
    part = tmp_path / "train/part-00000.parquet"
    content = part.read_bytes()
    middle = content.index("naïve".encode())
    for damaged in (b"", content[:-9], content[:middle] + b"N" + content[middle + 1 :]):
        part.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"part-00000.parquet is damaged \(.*\): run the prepare stage"):
            list(iterate_named_texts(tmp_path / "train"))
