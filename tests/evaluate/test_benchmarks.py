"""The catalogue of benchmarks, an entry for each; files that are fetched once, and always verified."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from imports import ROOT
from tiny import GPT2_MODEL, tokenizer_params

from lmcore.errors import DataError, ParameterError
from lmcore.evaluate.benchmark_formats import LAMBADA, Item, Record, RecordFormat
from lmcore.evaluate.benchmarks import BENCHMARKS, Benchmark, open_benchmarks
from lmcore.evaluate.multiple_choice import measure_benchmarks
from lmcore.evaluate.params import EvaluateParams
from lmcore.model.gpt import GPT
from lmcore.params import parse_section
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

BODY = b'{"text": "a word"}\n'
SHA256 = hashlib.sha256(BODY).hexdigest()
VALUES = {"max_tokens": None, "suites": None, "max_items": None}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


@pytest.fixture
def page(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The published file, on a server, and in the catalogue as `tiny`."""
    folder = tmp_path / "web"
    folder.mkdir()
    with serve_file(folder / "tiny.jsonl", BODY) as url:
        monkeypatch.setitem(BENCHMARKS, "tiny", describe(url, BODY, LAMBADA))
        yield folder / "tiny.jsonl"


@contextmanager
def serve_file(path: Path, content: bytes) -> Iterator[str]:
    """The file's address on a server of this machine."""
    path.write_bytes(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(path.parent)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{path.name}"
    server.shutdown()
    server.server_close()


def describe(url: str, content: bytes, form: RecordFormat) -> Benchmark:
    sha256 = hashlib.sha256(content).hexdigest()
    return Benchmark(description="", licence=None, format=form, url=url, sha256=sha256, items=1, bytes=len(content))


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_the_catalogue_is_whole() -> None:
    for name, suite in BENCHMARKS.items():
        assert re.fullmatch("[0-9a-f]{64}", suite.sha256), name
        assert suite.url.startswith("https://"), name
        assert suite.url.endswith((".jsonl", ".parquet")), name
        assert "/resolve/main/" not in suite.url, f"{name}: name the commit"
        assert suite.items > 1_000, name
    assert len({suite.sha256 for suite in BENCHMARKS.values()}) == len(BENCHMARKS)


def test_the_docs_have_a_row_for_each() -> None:
    rows = [
        f"| `{name}` | {each.items:,} | {each.description} | {each.licence or 'not stated'} |"
        for name, each in BENCHMARKS.items()
    ]
    docs = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    assert "\n".join(["| name | items | what | licence |", "|---|---|---|---|", *rows, "", ""]) in docs


def parse_capital(record: Record) -> Item:
    return Item(f"The capital of {record['country']} is", record["cities"], 0)


def test_one_is_added_by_an_entry_and_a_reader(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameter permits its name, a typing error is told the nearest one, and it is fetched, read and measured."""
    records = [{"country": "France", "cities": ["Paris", "Rome"]}, {"country": "Italy", "cities": ["Rome", "Bern"]}]
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    capitals = RecordFormat(frozenset({"country", "cities"}), parse_capital)
    tokenizer = train_tokenizer(tokenizer_params("byte"), [])
    model = GPT(GPT2_MODEL, tokenizer.vocab_size).eval()
    with serve_file(tmp_path / "capitals.jsonl", content) as url:
        monkeypatch.setitem(BENCHMARKS, "capitals", describe(url, content, capitals))
        params = parse_section(EvaluateParams, "evaluate", {**VALUES, "suites": ["capitals"]})
        files = open_benchmarks(params.suites or [])
    measured = measure_benchmarks(model, tokenizer, files, None)["suites"]["capitals"]
    assert (measured["items"], measured["sha256"]) == (2, hashlib.sha256(content).hexdigest())
    assert 0 <= measured["accuracy"] <= 1
    with pytest.raises(ParameterError, match=r"'capitls': did you mean capitals\? must be .* lambada_openai, capitals"):
        parse_section(EvaluateParams, "evaluate", {**VALUES, "suites": ["capitls"]})
    # A file of one's own may have its format.
    (project / "own.jsonl").write_bytes(content)
    own = measure_benchmarks(model, tokenizer, open_benchmarks(["own.jsonl"]), None)["suites"]["own"]
    assert own == measured


def test_a_named_benchmark_is_fetched_once(page: Path, project: Path) -> None:
    (first,) = open_benchmarks(["tiny"])
    assert first.path == project / ".cache/suites/tiny.jsonl"
    assert (first.name, first.sha256, first.path.read_bytes()) == ("tiny", SHA256, BODY)
    page.unlink()
    assert open_benchmarks(["tiny"]) == [first]
    assert list((project / ".cache/downloads").glob("*.part")) == []


def test_a_changed_copy_is_fetched_again(page: Path) -> None:
    (first,) = open_benchmarks(["tiny"])
    first.path.write_bytes(b"something else")
    assert open_benchmarks(["tiny"]) == [first]
    assert first.path.read_bytes() == BODY


def test_another_text_is_refused(page: Path, project: Path) -> None:
    page.write_bytes(BODY + BODY)
    with pytest.raises(DataError, match=rf"tiny.jsonl: its sha256 is \w+, expected {SHA256}"):
        open_benchmarks(["tiny"])
    assert not (project / ".cache/suites/tiny.jsonl").exists()


def test_a_file_of_ones_own(project: Path) -> None:
    (project / "own.jsonl").write_bytes(BODY)
    (own,) = open_benchmarks(["own.jsonl"])
    assert (own.name, own.path, own.sha256) == ("own", project / "own.jsonl", SHA256)
    with pytest.raises(ParameterError, match=r"evaluate.suites: \S+other.jsonl is no file; a relative path begins at"):
        open_benchmarks(["own.jsonl", "other.jsonl"])
    assert not (project / ".cache").exists()


@pytest.mark.parametrize(
    ("suites", "message"),
    [
        (
            ["helaswag"],
            r"evaluate.suites\[0\]='helaswag': did you mean hellaswag\? must be a .jsonl or .parquet file, or",
        ),
        (
            ["hellaswag", "own.txt"],
            r"evaluate.suites\[1\]='own.txt': must be a .jsonl or .parquet file, or one of hella",
        ),
        (["a/own.jsonl", "b/own.jsonl"], r"a/own.jsonl and b/own.jsonl would both be called 'own': rename one"),
        (["hellaswag", "a/hellaswag.jsonl"], r"would both be called 'hellaswag'"),
        ("hellaswag", r"evaluate.suites='hellaswag': must be a list"),
        ([3], r"evaluate.suites\[0\]=3: must be text"),
    ],
)
def test_a_broken_rule_is_named(suites: object, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse_section(EvaluateParams, "evaluate", {**VALUES, "suites": suites})
