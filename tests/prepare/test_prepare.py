"""From raw files to two splits: every document accounted for, every byte as it was."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preparing import make_params, read_bytes, read_split, run

from lmcore.errors import DataError, ParameterError
from lmcore.prepare import documents as documents_module

MIXED = {
    "a.txt": b"first text\r\nwith\x0c form feed\n",
    "b/blank.txt": b" \r\n",
    "b/copy.txt": b"first text\r\nwith\x0c form feed\n",
    "b/latin.txt": b"caf\xe9",
    "c.txt": "\ufeffsecond téxt".encode(),
    "d.pdf": b"{}",
    "e.bin.txt": b"nul \0 byte",
    "f.txt": b"hi",
    "g.txt": b"much too long " * 9,
    "h.txt": b"third text",
    "i.txt": b"second t\xc3\xa9xt",
}
REASONS = {"empty", "not_utf8", "unsupported_format", "nul_byte", "too_short", "too_long"}


def test_everything_is_accounted_for(make_raw, tmp_path):
    params = make_params(min_characters=3, max_characters=100)
    metrics, lengths = run(params, make_raw(MIXED), tmp_path / "documents")
    train, validation = (read_split(tmp_path / "documents" / name) for name in ("train", "validation"))
    kept = "first text\r\nwith\x0c form feed\n", "second téxt", "third text"
    assert "".join([*train.values(), *validation.values()]) == "".join(kept)
    assert metrics == {
        "documents": 11,
        "kept": 3,
        "rejected": dict.fromkeys(sorted(REASONS), 1),
        "duplicates": 2,
        "train_documents": 1,
        "validation_documents": 3,
        "train_bytes": 24,
        "validation_bytes": len("".join(kept).encode()) - 24,
        "leakage": 0.0,
    }
    assert lengths == {8: 2, 16: 1}
    assert sorted(read_bytes(tmp_path / "documents")) == [
        "rejected.parquet",
        "train/part-00000.parquet",
        "validation/part-00000.parquet",
    ]


def test_the_rejected_are_listed_with_reason_and_place(make_raw, tmp_path):
    run(make_params(min_characters=3, max_characters=100), make_raw(MIXED), tmp_path / "documents")
    rows = pq.read_table(tmp_path / "documents/rejected.parquet").to_pylist()
    assert [(row["file"], row["reason"], row["bytes"]) for row in rows] == [
        ("b/blank.txt", "empty", 3),
        ("b/copy.txt", "duplicate", 28),
        ("b/latin.txt", "not_utf8", 4),
        ("d.pdf", "unsupported_format", 2),
        ("e.bin.txt", "nul_byte", 10),
        ("f.txt", "too_short", 2),
        ("g.txt", "too_long", 126),
        ("i.txt", "duplicate", 12),
    ]
    assert [row["excerpt"] for row in rows][:3] == [" ", "a.txt", "caf\ufffd"]
    assert rows[-1]["excerpt"] == "c.txt"  # the same text, without the byte order mark
    assert {row["row"] for row in rows} == {None}


contents = st.one_of(st.binary(max_size=5), st.text(max_size=9).map(str.encode), st.sampled_from([b"same", b"other"]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdefgh").map("{}.txt".format), contents), st.sampled_from(["hash", "tail"]))
def test_laws(make_raw, tmp_path_factory, files, split):
    folder = tmp_path_factory.mktemp("laws") / "documents"
    try:
        metrics, lengths = run(make_params(split=split), make_raw(files), folder)
    except DataError:
        assert not folder.exists()
        return
    listed = Counter(pq.read_table(folder / "rejected.parquet")["reason"].to_pylist())
    assert metrics["duplicates"] == listed.pop("duplicate", 0)
    assert metrics["rejected"] == listed
    assert sum(lengths.values()) == metrics["kept"]
    assert len(files) == metrics["documents"] == metrics["kept"] + listed.total() + metrics["duplicates"]
    splits = {name: read_split(folder / name) for name in ("train", "validation")}
    for name, texts in splits.items():
        assert metrics[f"{name}_documents"] == len(texts)
        assert metrics[f"{name}_bytes"] == sum(len(text.encode()) for text in texts.values())
    assert not set(splits["train"]) & set(splits["validation"])
    both = splits["train"] | splits["validation"]
    for name in files:
        halves = [both.get(f"{name}{half}") for half in ("#train", "#validation")]
        text = both.get(name) if None in halves else "".join(halves)
        assert text is None or text.encode() == files[name].removeprefix(b"\xef\xbb\xbf")


@pytest.mark.parametrize("split", ["hash", "tail"])
def test_twice_gives_the_same_bytes(make_raw, tmp_path, split, monkeypatch):
    monkeypatch.setattr(documents_module, "BATCH_ROWS", 7)
    monkeypatch.setattr(documents_module, "PART_BYTES", 300)
    raw = make_raw({f"{number}.txt": b"text %d" % (number % 90) for number in range(100)})
    metrics = [run(make_params(split=split), raw, tmp_path / name) for name in ("one", "two")]
    assert metrics[0] == metrics[1]
    assert read_bytes(tmp_path / "one") == read_bytes(tmp_path / "two")
    assert metrics[0][0]["duplicates"] == 10  # far apart, in other batches


def test_overlap_of_the_splits_is_measured(make_raw, tmp_path):
    words = b" ".join(b"word%d" % number for number in range(100))
    metrics, _ = run(make_params(), make_raw({"a.txt": words, "b.txt": words + b" end"}), tmp_path / "documents")
    assert 0.9 < metrics["leakage"] < 1
    shutil.rmtree(tmp_path / "documents")
    with pytest.raises(DataError, match=r"^9.* of validation's .*more than prepare\.max_leakage=0\.5 allows: remove"):
        run(make_params(max_leakage=0.5), tmp_path / "raw", tmp_path / "documents")
    assert not (tmp_path / "documents").exists()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "e\u0301\r\nb\rc\n"),
        ({"unicode": "nfc"}, "\u00e9\r\nb\rc\n"),
        ({"newlines": "unix"}, "e\u0301\nb\nc\n"),
        ({"unicode": "nfc", "newlines": "unix"}, "\u00e9\nb\nc\n"),
    ],
)
def test_text_is_as_published_unless_asked(make_raw, tmp_path, values, text):
    raw = make_raw({"a.txt": "e\u0301\r\nb\rc\n".encode(), "b.txt": "\u00e9\nb\nc\n".encode(), "c.txt": b"other" * 3})
    metrics, _ = run(make_params(split="tail", **values), raw, tmp_path / "documents")
    train, validation = (read_split(tmp_path / "documents" / name) for name in ("train", "validation"))
    both = "".join([*train.values(), *validation.values()])
    assert both.startswith(text)
    assert metrics["duplicates"] == (text == "\u00e9\nb\nc\n")
    assert metrics["train_bytes"] + metrics["validation_bytes"] == len(both.encode())


def test_much_that_is_lost_at_once_counts_by_its_bytes(make_raw, tmp_path):
    rows = [f"row {number}" for number in range(100)]
    raw = make_raw({"a.csv": "\n".join(["text", *rows, '"no end', *rows, *rows]).encode()})
    with pytest.raises(DataError, match=r"1 of 101 documents rejected .*e\.g\. a\.csv:\d+: broken_row; more"):
        run(make_params(max_rejected_fraction=0.1), raw, tmp_path / "documents")


def test_rows_of_a_table_are_documents_with_their_place(make_raw, tmp_path):
    lines = [b'{"text": "one text"}', b"{", b'{"text": "two text"}', b'{"text": " "}', b'{"text": "one text"}']
    run(make_params(), make_raw({"a.jsonl": b"\n".join(lines), "b.txt": b"three"}), tmp_path / "documents")
    rows = pq.read_table(tmp_path / "documents/rejected.parquet").to_pylist()
    assert [(row["file"], row["row"], row["reason"]) for row in rows] == [
        *(("a.jsonl", 2, "broken_json"), ("a.jsonl", 4, "empty"), ("a.jsonl", 5, "duplicate")),
    ]
    assert rows[2]["excerpt"] == "a.jsonl:1"
    names = [name for split in ("train", "validation") for name in read_split(tmp_path / "documents" / split)]
    assert [name.split("#")[0] for name in names][:2] == ["a.jsonl:1", "a.jsonl:3"]


@pytest.mark.parametrize(
    ("files", "values", "message"),
    [
        ({}, {}, r"^the corpus is empty: no file of data/raw holds a document$"),
        (
            {"a.txt": b" ", "b.txt": b"\xff"},
            {},
            r"^the corpus is empty: 2 of 2 documents rejected \(empty 1, not_utf8 1\), "
            r"e.g. a.txt: empty, b.txt: not_utf8; mend these files, give others or loosen",
        ),
        (
            MIXED,
            {"max_rejected_fraction": 0.3},
            r"^4 of 11 documents rejected \(empty 1, .*\), e.g. b/blank.txt: empty, .*; more than "
            r"prepare.max_rejected_fraction=0.3 allows: mend or remove these files, loosen the rule .* limit$",
        ),
        (
            {"a.txt": b"alone"},
            {"split": "hash", "validation_fraction": 0.01},
            r"^no text is left for validation with prepare.split=hash and prepare.validation_fraction=0.01: "
            r"choose another fraction, or prepare.split=tail, which cuts inside a document$",
        ),
        (
            {"a.txt": b"a"},
            {},
            r"^no text is left for training with prepare.split=tail .*=0.5: choose another fraction$",
        ),
    ],
)
def test_a_corpus_that_will_not_do(make_raw, tmp_path, files, values, message):
    with pytest.raises(DataError, match=message):
        run(make_params(**values), make_raw(files), tmp_path / "documents")
    assert not (tmp_path / "documents").exists()
    assert list(tmp_path.glob(".*partial*")) == []


def test_the_limit_counts_no_duplicates(make_raw, tmp_path):
    raw = make_raw({f"{number}.txt": b"the same" for number in range(9)} | {"9.txt": b" "})
    assert run(make_params(max_rejected_fraction=0.1), raw, tmp_path / "documents")[0]["duplicates"] == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "tial"}, r"^prepare.split='tial': must be 'hash' or 'tail', did you mean tail\?$"),
        ({"validation_fraction": 0.0}, r"^prepare.validation_fraction=0.0: must be greater than 0$"),
        ({"validation_fraction": 1.0}, r"^prepare.validation_fraction=1.0: must be less than 1$"),
        ({"max_rejected_fraction": 1.5}, r"^prepare.max_rejected_fraction=1.5: must be less than or equal to 1$"),
        ({"separator": ""}, r"^prepare.separator='': must be text of at least one character"),
        ({"min_characters": -1}, r"^prepare.min_characters=-1: must be greater than or equal to 0$"),
        ({"max_characters": 0}, r"^prepare.max_characters=0: must be at least 1"),
        (
            {"min_characters": 5, "max_characters": 4},
            r"^prepare.max_characters=4: must be at least 1 and at least prepare.min_characters=5, or null",
        ),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(ParameterError, match=message):
        make_params(**values)


def test_a_disk_that_is_full_is_one_line(make_raw, tmp_path):
    make_raw({f"{number}.txt": os.urandom(9000).hex().encode() for number in range(50)})
    code = f"""
import resource
from pathlib import Path
from typing import Any
from lmcore.prepare.prepare import prepare
from lmcore.prepare.params import PrepareParams
from lmcore.errors import report_errors
folder = Path({str(tmp_path)!r})
params = PrepareParams.model_validate({make_params().model_dump()!r})
with report_errors():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    prepare(params, folder / "raw", folder / "documents", scratch=folder / "scratch")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert re.fullmatch(
        r"error: .*the file would grow over the system's limit: raise it \(ulimit -f\)\n", result.stderr
    )
    assert result.returncode == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "scratch"]
