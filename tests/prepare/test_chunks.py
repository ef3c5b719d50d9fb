"""The text in chunks: what processes, kills and the cut cannot change; and what is told of near copies."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparing import make_params, read_bytes, read_split, run

from lmcore.errors import ArtifactError, DataError, ParameterError
from lmcore.files import write_json
from lmcore.prepare import chunks, readers
from lmcore.prepare import prepare as prepare_module
from lmcore.prepare import scan as scan_module
from lmcore.prepare.documents import list_parts
from lmcore.prepare.raw_files import Layout


@pytest.mark.parametrize("split", ["hash", "tail"])
def test_chunks_and_processes_change_nothing_but_the_parts(make_raw, tmp_path, split, monkeypatch):
    texts = [f"text {number % 30} of {split}\n" * (number % 3 + 1) for number in range(100)]
    rows = pa.table({"text": [*texts[60:80], None, *texts[80:]]})
    table = io.BytesIO()
    pq.write_table(rows, table, row_group_size=6)
    files = {f"{number:02}.txt": text.encode() for number, text in enumerate(texts[:40])}
    files |= {"x.jsonl": "\n".join(json.dumps(text) for text in texts[40:60]).encode(), "y.parquet": table.getvalue()}
    raw = make_raw(files)
    params = make_params(split=split)
    whole = run(params, raw, tmp_path / "whole")
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 500)
    assert len(chunks.list_chunks(raw, Layout())) > 10
    assert run(params, raw, tmp_path / "one") == whole
    assert run(params, raw, tmp_path / "three", workers=3) == whole
    assert read_bytes(tmp_path / "three") == read_bytes(tmp_path / "one")
    for name in ("train", "validation"):
        assert read_split(tmp_path / "one" / name) == read_split(tmp_path / "whole" / name)
    listed = [pq.read_table(tmp_path / name / "rejected.parquet").to_pylist() for name in ("whole", "one")]
    assert listed[0] == listed[1]
    assert {("y.parquet", 21, "no_text")} < {(row["file"], row["row"], row["reason"]) for row in listed[0]}


def test_parts_know_their_source(make_raw, tmp_path):
    raw = make_raw({f"{number}.txt": b"text %d" % number for number in range(8)})
    entries = [{"source": "ab"[number // 4], "path": f"{number}.txt"} for number in range(8)]
    write_json(raw / "manifest.json", {"files": entries})
    run(make_params(), raw, tmp_path / "documents")
    sources = [(part.source, len(list(part.read()))) for part in list_parts(tmp_path / "documents/train")]
    assert [source for source, _ in sources] == ["a"]
    assert [part.source for part in list_parts(tmp_path / "documents/validation")] == ["b"]


def test_a_killed_stage_goes_on(make_raw, tmp_path, monkeypatch):
    """Killed before every one of its file operations in turn; what was done is not done again."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1)
    raw = make_raw({f"{number}.txt": b"text %d" % (number % 4) for number in range(6)})
    run(make_params(), raw, tmp_path / "whole")
    scanned = []
    read = scan_module.read_normalised
    monkeypatch.setattr(scan_module, "read_normalised", lambda *args: scanned.append(args[0].number) or read(*args))
    for steps in range(1, 40):
        with monkeypatch.context() as patch:
            left = iter(range(steps))
            replace = Path.replace

            def move(path, target, left=left, replace=replace):
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return replace(path, target)

            patch.setattr(Path, "replace", move)
            try:
                run(make_params(), raw, tmp_path / "documents")
                break
            except KeyboardInterrupt:
                assert not (tmp_path / "documents").exists()
    assert steps > 6
    assert scanned == sorted(scanned)
    assert len(set(scanned)) == 6
    assert len(scanned) < 13  # not every chunk after every kill
    assert read_bytes(tmp_path / "documents") == read_bytes(tmp_path / "whole")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_near_duplicates_go_where_asked(make_raw, tmp_path):
    words = [f"word{number}" for number in range(100)]
    changed = [*words[:50], "another", *words[51:]]  # shares 91 of the 101 sequences of 5 words that both have
    other = words[::-1]
    raw = make_raw(
        {f"{name}.txt": " ".join(text).encode() for name, text in zip("abc", (words, changed, other), strict=True)}
    )
    kept, _ = run(make_params(), raw, tmp_path / "kept")
    assert (kept["kept"], kept["duplicates"], "near_duplicates" in kept) == (3, 0, False)
    metrics, _ = run(make_params(near_duplicates=0.8), raw, tmp_path / "some")
    assert (metrics["kept"], metrics["duplicates"], metrics["near_duplicates"], metrics["rejected"]) == (2, 1, 1, {})
    (row,) = pq.read_table(tmp_path / "some/rejected.parquet").to_pylist()
    assert (row["file"], row["reason"], row["excerpt"]) == ("b.txt", "near_duplicate", "a.txt")
    for similarity in (0.99, 1.0):
        strict, _ = run(make_params(near_duplicates=similarity), raw, tmp_path / f"strict{similarity}")
        assert strict["near_duplicates"] == 0


def test_contamination_is_the_benchmarks_share_in_the_training_text(make_raw, tmp_path):
    """tmp_path is the project's root here: a relative name begins there."""
    words = [f"word{number}" for number in range(60)]
    raw = make_raw({"a.txt": " ".join(words).encode(), "b.txt": b"other text " * 30})
    records = [
        {"context": " ".join(words[10:30]), "endings": [" ".join(words[30:50]), "short"]},
        {"context": "x " * 20},
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, records)))
    metrics, _ = run(make_params(contamination="items.jsonl"), raw, tmp_path / "documents")
    assert metrics["contamination"] == pytest.approx(16 / 17)  # 8 and 8 sequences of 13 words, and one of x
    for content, complaint in {
        b"{": ":1: broken_json: mend",
        b'1\n"\xff"': ":2: not_utf8: mend",
        b'"\\ud800"': ":1: not_utf8: mend",
        b"[" * 100_000: ":1: broken_json: mend",
        b'\xff\xfe"': ": not_utf8: mend",
        b'["twelve words"]': " has no text of 13 words or more",
    }.items():
        (tmp_path / "items.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=rf"^prepare\.contamination: .*items\.jsonl{complaint}"):
            run(make_params(contamination="items.jsonl"), raw, tmp_path / "other")
    (tmp_path / "items.jsonl.gz").write_bytes(b"not compressed")
    with pytest.raises(DataError, match=r"^prepare\.contamination: .*items\.jsonl\.gz: damaged: mend the file$"):
        run(make_params(contamination="items.jsonl.gz"), raw, tmp_path / "other")
    with pytest.raises(ParameterError, match=r"^prepare\.contamination='nothing': .*nothing is no file; a relative"):
        run(make_params(contamination="nothing"), raw, tmp_path / "other")


@pytest.mark.parametrize("split", ["hash", "tail"])
@pytest.mark.parametrize("change", [b"text 1\ntext 2", b"text 1\ntext 2\ntext 3\ntext 4", b"text 1\n\0\ntext 3"])
def test_text_that_changes_between_the_passes_is_noticed(make_raw, tmp_path, monkeypatch, split, change):
    raw = make_raw({"a.txt": b"text 1\ntext 2\ntext 3", "b.txt": b"x\n" * 3})
    write = prepare_module.write

    def write_later(*args: object) -> object:
        (raw / "files/a.txt").write_bytes(change)
        return write(*args)

    monkeypatch.setattr(prepare_module, "write", write_later)
    with pytest.raises(ArtifactError, match=r"a file from .*a\.txt to .*b\.txt changed while the stage ran: run"):
        run(make_params(split=split, separator="\n"), raw, tmp_path / "documents")
    assert not (tmp_path / "documents").exists()


def test_a_limit_that_is_raised_goes_on_with_what_was_done(make_raw, tmp_path, monkeypatch):
    words = b" ".join(b"word%d" % number for number in range(100))
    raw = make_raw({"a.txt": words, "b.txt": words + b" end"})
    with pytest.raises(DataError, match=r"more than prepare\.max_leakage=0\.5 allows"):
        run(make_params(max_leakage=0.5), raw, tmp_path / "documents")
    monkeypatch.setattr(scan_module, "read_normalised", None)
    monkeypatch.setattr(prepare_module, "read_normalised", None)
    assert run(make_params(), raw, tmp_path / "documents")[0]["kept"] == 2


def test_a_file_that_vanishes_is_one_line(make_raw):
    raw = make_raw({"a.txt": b"text"})
    (chunk,) = chunks.list_chunks(raw, Layout())
    (raw / "files/a.txt").unlink()
    with pytest.raises(ArtifactError, match=r"raw/files/a\.txt was removed while the stage ran: run the down"):
        list(chunk.read())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n\n"])
def test_parts_of_json_lines_are_the_whole(make_raw, monkeypatch, encoding, end):
    lines = [json.dumps({"text": f"é line {number} " * (number % 7)}, ensure_ascii=False) for number in range(60)]
    lines[20:20] = ["", "{broken", '{"other": 1}', '"\\udc00"']
    raw = make_raw({"a.jsonl": ("\n".join(lines) + end).encode(encoding)})
    (whole,) = chunks.list_chunks(raw, Layout())
    for size in (1, 50, 300, 3000):
        monkeypatch.setattr(chunks, "CHUNK_BYTES", size)
        for read in (7, 64, 1 << 20):
            monkeypatch.setattr(readers, "READ_BYTES", read)
            parts = chunks.list_chunks(raw, Layout())
            assert [item for part in parts for item in part.read()] == list(whole.read())
            assert sum(part.size for part in parts) == whole.size
            if encoding.startswith("utf-8") and size < 300 and read < 100:
                assert len(parts) > 5
