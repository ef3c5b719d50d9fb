"""The catalogue of benchmarks, and files that are fetched once, verified always, and never taken from anywhere else."""

import hashlib
import re
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from lmcore.errors import DataError, ParameterError
from lmcore.evaluate import benchmarks as suites_module
from lmcore.evaluate.benchmarks import SUITES, Suite, open_suites
from lmcore.evaluate.params import EvaluateParams
from lmcore.params import parse_section

BODY = b'{"text": "a word"}\n'
SHA256 = hashlib.sha256(BODY).hexdigest()


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
    (folder / "tiny.jsonl").write_bytes(BODY)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/tiny.jsonl"
    tiny = Suite(description="One.", licence=None, url=url, sha256=SHA256, items=1, bytes=len(BODY))
    monkeypatch.setitem(suites_module.SUITES, "tiny", tiny)
    yield folder / "tiny.jsonl"
    server.shutdown()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_the_catalogue_is_whole() -> None:
    for name, suite in SUITES.items():
        assert re.fullmatch("[0-9a-f]{64}", suite.sha256), name
        assert suite.url.startswith("https://"), name
        assert suite.url.endswith((".jsonl", ".parquet")), name
        assert "/resolve/main/" not in suite.url, f"{name}: name the commit"
        assert suite.items > 1_000, name
    assert len({suite.sha256 for suite in SUITES.values()}) == len(SUITES)


def test_a_named_benchmark_is_fetched_once(page: Path, project: Path) -> None:
    (first,) = open_suites(["tiny"])
    assert first.path == project / ".cache/suites/tiny.jsonl"
    assert (first.name, first.sha256, first.path.read_bytes()) == ("tiny", SHA256, BODY)
    page.unlink()
    assert open_suites(["tiny"]) == [first]
    assert list((project / ".cache/downloads").glob("*.part")) == []


def test_a_changed_copy_is_fetched_again(page: Path) -> None:
    (first,) = open_suites(["tiny"])
    first.path.write_bytes(b"something else")
    assert open_suites(["tiny"]) == [first]
    assert first.path.read_bytes() == BODY


def test_another_text_is_refused(page: Path, project: Path) -> None:
    page.write_bytes(BODY + BODY)
    with pytest.raises(DataError, match=rf"tiny.jsonl: its sha256 is \w+, expected {SHA256}"):
        open_suites(["tiny"])
    assert not (project / ".cache/suites/tiny.jsonl").exists()


def test_a_file_of_ones_own(project: Path) -> None:
    (project / "own.jsonl").write_bytes(BODY)
    (own,) = open_suites(["own.jsonl"])
    assert (own.name, own.path, own.sha256) == ("own", project / "own.jsonl", SHA256)
    with pytest.raises(ParameterError, match=r"evaluate.suites: \S+other.jsonl is no file; a relative path begins at"):
        open_suites(["own.jsonl", "other.jsonl"])
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
        parse_section(
            EvaluateParams,
            "evaluate",
            {"max_tokens": None, "suites": suites, "max_items": None},
        )
