"""Every format that text comes in, plain and compressed: the same documents, and nothing lost without a word."""

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcore.errors import ArtifactError
from lmcore.prepare import raw_files
from lmcore.prepare.chunks import list_chunks
from lmcore.prepare.documents import Document, Rejection
from lmcore.prepare.raw_files import Layout, join_lines, split

TEXT = "naïve\r\n\x0cpage two\r\tend\u2028\U0001f600"
TEXTS = ["one", 'two\nlines, "quoted"', TEXT, " ", "наш\t市"]
MakeRaw = Callable[[dict[str, bytes]], Path]


def read(raw: Path, **layout: Any) -> list[Document | Rejection]:
    return [item for chunk in list_chunks(raw, Layout(**layout)) for item in chunk.read()]


def summarise(items: list[Document | Rejection]) -> list[tuple[int | None, str]]:
    """The row of each, with its text or the reason why it has none."""
    return [(item.row, item.text if isinstance(item, Document) else item.reason) for item in items]


def to_json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": 1, "text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def to_table(texts: list[str], delimiter: str) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
    writer.writerows([["id", "text"], *([str(number), text] for number, text in enumerate(texts))])
    return buffer.getvalue().encode()


def to_parquet(texts: list[str], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), buffer, row_group_size=2, **options)
    return buffer.getvalue()


def to_zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


FORMATS = {
    "jsonl": to_json_lines,
    "ndjson": to_json_lines,
    "csv": lambda texts: to_table(texts, ","),
    "tsv": lambda texts: to_table(texts, "\t"),
    "parquet": to_parquet,
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": to_zstd}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_documents(make_raw: MakeRaw, kind: str, compression: str) -> None:
    raw = make_raw({f"a.{kind}{compression}": COMPRESSIONS[compression](FORMATS[kind](TEXTS))})
    items = read(raw)
    assert [item.text for item in items if isinstance(item, Document)] == TEXTS
    assert [item.bytes for item in items] == [len(text.encode()) for text in TEXTS]
    assert len({item.id for item in items}) == len(TEXTS)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "b", "B.HTML"])
def test_any_other_file_is_one_text(make_raw: MakeRaw, name: str, compression: str) -> None:
    items = read(make_raw({f"{name}{compression}": COMPRESSIONS[compression](TEXT.encode())}))
    assert items == [Document.of(f"{name}{compression}", TEXT)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1)))
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_every_text_survives(make_raw: MakeRaw, kind: str, texts: list[str]) -> None:
    """In CSV a carriage return is a line end, whoever wrote it."""
    assert [item.text for item in read(make_raw({f"a.{kind}": FORMATS[kind](texts)}))] == texts


@pytest.mark.parametrize(
    "content",
    [TEXT.encode(codec) for codec in ("utf-8", "utf-8-sig", "utf-16", "utf-32")]
    + [mark + TEXT.encode(codec) for mark, codec in ((b"\xfe\xff", "utf-16-be"), (b"\0\0\xfe\xff", "utf-32-be"))],
)
def test_a_text_is_read_exactly(make_raw: MakeRaw, content: bytes) -> None:
    assert read(make_raw({"a/b.txt": content})) == [Document("a/b.txt", None, TEXT, len(TEXT.encode()))]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=50)
@given(text=st.text(), codec=st.sampled_from(["utf-8-sig", "utf-16", "utf-32"]), chunk=st.integers(1, 9))
def test_every_encoding_survives_any_chunks(make_raw: MakeRaw, text: str, codec: str, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_files, "READ_BYTES", chunk)
        (document,) = read(make_raw({"a.txt": text.encode(codec)}))
    assert document == Document.of("a.txt", text)


@pytest.mark.parametrize("content", [b"caf\xe9 au lait", b"\xff\xfea", b"ok \xed\xa0\x80", b"cut short \xe2\x82"])
def test_what_is_not_utf8_is_turned_away(make_raw: MakeRaw, content: bytes) -> None:
    (rejection,) = read(make_raw({"a.txt": content}))
    assert isinstance(rejection, Rejection)
    assert (rejection.file, rejection.reason, rejection.bytes) == ("a.txt", "not_utf8", len(content))


@pytest.mark.parametrize("name", ["a.npy", "a.PDF", "a.zip", "a.txt.xz", "a.bin.gz"])
def test_what_is_no_text_is_not_taken_for_it(make_raw: MakeRaw, name: str) -> None:
    assert read(make_raw({name: b'{"text": 1}\n'})) == [Rejection(name, None, "unsupported_format", 12, '{"text": 1}')]


@pytest.mark.parametrize(
    ("separator", "content", "texts"),
    [
        (
            "<|endoftext|>",
            "a\n<|endoftext|>\nb b\n\nb<|endoftext|><|endoftext|>\n<|endoftext|>c",
            ["a", "b b\n\nb", "c"],
        ),
        ("blank_line", "\n\na\n a\n \t\n\nb\r\n\r\nc\n", ["a\n a", "b", "c"]),
        ("---", "----a---", ["-a"]),
        ("blank_line", "", []),
    ],
)
@pytest.mark.parametrize("chunk", [1, 2, 5, 1 << 20])
def test_separators_part_a_file(
    make_raw: MakeRaw, monkeypatch: pytest.MonkeyPatch, chunk: int, separator: str, content: str, texts: list[str]
) -> None:
    monkeypatch.setattr(raw_files, "READ_BYTES", chunk)
    items = read(make_raw({"a.txt": content.encode()}), separator=separator)
    assert summarise(items) == list(enumerate(texts, 1))
    assert [item.id for item in items] == [f"a.txt:{row}" for row in range(1, len(texts) + 1)]


@given(st.text("ab", max_size=30), st.text("ab", min_size=1, max_size=3), st.integers(1, 5))
def test_pieces_are_those_of_the_whole_however_it_comes(text: str, separator: str, chunk: int) -> None:
    content = text.encode()
    chunks = [content[start : start + chunk] for start in range(0, len(content), chunk)]
    assert list(split(chunks, separator.encode())) == content.split(separator.encode())


def test_a_broken_record_is_alone_in_its_loss(make_raw: MakeRaw) -> None:
    lines = [
        *(b'{"text": "one"}', b"", b'{"text": "cut sh', b'{"txt": "other"}', b'{"text": null}', b'{"text": 5}', b"[1]"),
        *(
            b'{"text": "\\ud800"}',
            b'{"text": "\xff"}',
            b'"bare"',
            b'{"text": ""}',
            b'{"text": "last"}\r',
            b"[" * 100_000,
        ),
    ]
    assert summarise(read(make_raw({"a.jsonl": b"\n".join(lines)}))) == [
        *((1, "one"), (3, "broken_json"), (4, "no_text"), (5, "no_text"), (6, "no_text"), (7, "no_text")),
        *((8, "not_utf8"), (9, "not_utf8"), (10, "bare"), (11, ""), (12, "last"), (13, "broken_json")),
    ]


def test_a_broken_row_is_alone_in_its_loss(make_raw: MakeRaw) -> None:
    content = b'id,text\n1,one\n2\n\n3,"two\nlines",more\n4,\xff\n5,last'
    assert summarise(read(make_raw({"a.csv": content}))) == [
        *((2, "one"), (3, "no_text"), (6, "two\nlines"), (7, "not_utf8"), (8, "last")),
    ]


def test_a_row_that_the_parser_refuses_is_alone_too(make_raw: MakeRaw) -> None:
    rows = [f"{number},text {number}".encode() for number in range(20)]
    rows[3], rows[9] = b"3,stray \r here", b'9,"a"b'
    items = read(make_raw({"a.csv": b"id,text\n" + b"\n".join(rows) + b"\n"}))
    assert [item.row for item in items if isinstance(item, Rejection)] == [5, 11]
    assert {item.reason for item in items if isinstance(item, Rejection)} == {"broken_row"}
    assert [item.text for item in items if isinstance(item, Document)] == [
        f"text {number}" for number in range(20) if number not in {3, 9}
    ]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_quote_without_end_is_no_document(make_raw: MakeRaw, kind: str) -> None:
    (first, rest) = read(make_raw({f"a.{kind}": b'text\none\n"two said\nthree\nfour\n'}))
    assert isinstance(first, Document)
    assert isinstance(rest, Rejection)
    assert (first.text, rest.reason) == ("one", "broken_row")
    assert rest.bytes >= len(b'"two said\nthree\nfour\n')  # all that it swallowed


def test_another_field_may_hold_the_text(make_raw: MakeRaw) -> None:
    raw = make_raw({"a.jsonl": b'{"content": "x", "text": "y"}', "b.csv": b"text,content\ny,x\n"})
    assert [item.text for item in read(raw, text_field="content")] == ["x", "x"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"id,body\n1,one\n"),
        ("a.csv", b""),
        ("a.parquet", to_parquet(TEXTS)),
        ("b.parquet", pa.BufferOutputStream()),
        ("b.csv", b"body,body\n1,2\n"),
    ],
)
def test_a_file_without_the_field_is_refused_whole(make_raw: MakeRaw, name: str, content: Any) -> None:
    if not isinstance(content, bytes):
        pq.write_table(pa.table({"body": [1, 2]}), content)
        content = content.getvalue().to_pybytes()
    assert summarise(read(make_raw({name: content}), text_field="body" if name.startswith("b") else "nothing")) == [
        (None, "no_text")
    ]


def test_parquet_holds_nulls_and_bytes(make_raw: MakeRaw) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()}), buffer)
    assert summarise(read(make_raw({"a.parquet": buffer.getvalue()}))) == [(1, "a"), (2, "b"), (3, "a")]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array([b"one", None, b"\xff", b"last"])}), buffer)
    assert summarise(read(make_raw({"a.parquet": buffer.getvalue()}))) == [
        *((1, "one"), (2, "no_text"), (3, "not_utf8"), (4, "last")),
    ]


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_compressed_file_that_ends_early_gives_what_came_before(make_raw: MakeRaw, compression: str) -> None:
    lines = [json.dumps({"text": f"{number} {number**9}"}) for number in range(100_000)]
    content = COMPRESSIONS[compression]("\n".join(lines).encode())
    *before, last = read(make_raw({f"a.jsonl{compression}": content[: len(content) // 2]}))
    assert len(before) > 10_000
    assert [item.text for item in before if isinstance(item, Document)] == [
        json.loads(line)["text"] for line in lines[: len(before)]
    ]
    assert (last.row, last.reason) == (None, "damaged")


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.parquet", "a.parquet.gz"])
def test_what_is_not_what_its_name_says_is_damaged(make_raw: MakeRaw, name: str) -> None:
    assert summarise(read(make_raw({name: b"quite another thing"}))) == [(None, "damaged")]


def test_beyond_the_limit_nothing_is_taken(make_raw: MakeRaw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_files, "MAX_DOCUMENT_BYTES", 30)
    monkeypatch.setattr(raw_files, "READ_BYTES", 7)
    long = json.dumps({"text": "x" * 40})
    raw = make_raw(
        {
            "a.txt": b"x" * 31,
            "b.jsonl": f'{{"text": "one"}}\n{long}\n{{"text": "two"}}'.encode(),
            "c.txt.gz": gzip.compress(b"x" * 30),
            "d.csv": b"text\n" + b"x" * 31,
        }
    )
    assert summarise(read(raw)) == [
        *((None, "too_long"), (1, "one"), (2, "too_long"), (3, "two"), (None, "x" * 30), (None, "too_long")),
    ]
    separated = make_raw({"a.txt": b"a\nb\n\n" + b"x\n" * 16 + b"\nend"})
    assert summarise(read(separated, separator="blank_line")) == [(1, "a\nb"), (None, "too_long")]


def test_memory_is_that_of_one_document(tmp_path: Path, make_raw: MakeRaw) -> None:
    line = json.dumps({"text": "word " * 1000}) + "\n"
    raw = make_raw({"a.jsonl.gz": gzip.compress((line * 20_000).encode(), 1)})  # 100 MB
    tracemalloc.start()
    try:
        assert sum(item.bytes for chunk in list_chunks(raw, Layout()) for item in chunk.read()) == 20_000 * 5000
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_lines_are_joined_between_blank_ones() -> None:
    lines: Iterator[bytes] = iter([b"", b"a", b"b", b" ", b"\r", b"c"])
    assert list(join_lines(lines)) == [b"a\nb", b"c"]


def test_missing_files_are_named(make_raw: MakeRaw, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere/manifest.json does not exist: run the download stage"):
        read(tmp_path / "nowhere")
    raw = make_raw({"a.txt": b"a"})
    (raw / "files/a.txt").unlink()
    with pytest.raises(
        ArtifactError, match=r"raw/files/a.txt does not exist, though .*manifest.json lists it: run the"
    ):
        read(raw)
