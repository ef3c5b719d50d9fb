"""Registries: an entry from outside is permitted, used, and named in messages; the docs list what there is."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preparing import make_params, read_split
from tiny import tokenizer_params

from lmcore.download.catalog import CATALOG, Source
from lmcore.download.download import download
from lmcore.download.params import DownloadParams
from lmcore.errors import ParameterError
from lmcore.params import parse_section
from lmcore.prepare.documents import Document, Rejection
from lmcore.prepare.prepare import prepare
from lmcore.prepare.quality import FILTERS, QualityFilter
from lmcore.prepare.raw_files import RawFile
from lmcore.prepare.readers import FORMATS, UNSUPPORTED, Format
from lmcore.tokenizer.base import Ids, Tokenizer, TokenizerKind, write_definition
from lmcore.tokenizer.byte import ByteTokenizer, define_bytes
from lmcore.tokenizer.load import KINDS, load_tokenizer
from lmcore.train_tokenizer.train_tokenizer import expect_vocabulary, train_tokenizer

DOCS = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project's root in the test's own folder."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def make_source(folder: Path) -> Source:
    """A corpus on this machine: a file for each document."""
    texts = {
        "a.txt": "the cat sat",
        "b.shout": "the DOG ran",
        "c.txt": "tiny",
        "d.shout": "the END",
        "e.txt": "a mat",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return Source(description="Cats.", licence="CC0-1.0", find=lambda: (folder, sorted(map(Path, texts))), version="7")


def read_shouted(file: RawFile) -> Iterator[Document | Rejection]:
    for row, word in enumerate(b"".join(file.read_bytes()).decode().split(), 1):
        yield file.take(word.upper(), row)


class OffsetTokenizer(ByteTokenizer):
    """Bytes whose ids are in the other order, so that it cannot be mistaken for a ByteTokenizer."""

    kind = "offset"

    @classmethod
    def train(cls, _: Iterable[list[str]], special_tokens: list[str], digits: int) -> Tokenizer:
        definition = define_bytes(["<|endoftext|>"])
        definition["model"]["vocab"] = cls.turn(definition["model"]["vocab"])
        definition["model"]["unk_token"] = f"digits {digits}"
        return cls(write_definition(definition)).reserve(special_tokens)

    @staticmethod
    def turn(vocabulary: dict[str, int]) -> dict[str, int]:
        return {symbol: 255 - token if token < 256 else token for symbol, token in vocabulary.items()}

    @classmethod
    def has_written(cls, definition: Any) -> bool:
        return str(definition["model"]["unk_token"]).startswith("digits ")

    def _encode(self, text: str) -> Ids:
        return np.uint32(255) - super()._encode(text)


def check_offset(digits: int, **_: object) -> None:
    if digits != 3:
        raise ValueError(f"train_tokenizer.digits={digits}: must be 3 for kind offset")


def test_a_source_a_format_and_a_filter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts").mkdir()
    monkeypatch.setitem(CATALOG, "cats", make_source(tmp_path / "texts"))
    monkeypatch.setitem(FORMATS, ".shout", Format(read_shouted))
    vowels = QualityFilter(lambda text: {"vowels": sum(map(text.lower().count, "aeiou"))}, {"vowels": (1, 2)})
    monkeypatch.setitem(FILTERS, "vowels", vowels)

    metrics = download(DownloadParams(source="cats"), tmp_path / "raw")
    assert metrics["files"] == 5
    (source,) = json.loads((tmp_path / "raw/manifest.json").read_text())["sources"]
    assert source == {"name": "cats", "licence": "CC0-1.0", "url": None, "version": "7"}

    params = make_params(quality="vowels", split="tail")
    found, _ = prepare(params, tmp_path / "raw", tmp_path / "documents", scratch=tmp_path / "scratch")
    texts = [text for split in ("train", "validation") for text in read_split(tmp_path / "documents" / split).values()]
    assert "".join(texts) == "THEDOGRANtinyENDa mat"  # the second THE is a duplicate
    assert (found["documents"], found["rejected"], found["duplicates"]) == (8, {"quality_vowels": 1}, 1)


def test_a_tokenizer_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = TokenizerKind(
        train=OffsetTokenizer.train,
        expect=lambda special_tokens, digits: 254 + digits + len(special_tokens),
        reads=("digits",),
        check=check_offset,
        tokenizer=OffsetTokenizer,
    )
    monkeypatch.setitem(KINDS, "offset", kind)
    params = tokenizer_params("offset", digits=3, special_tokens=["<|user|>"])
    tokenizer = train_tokenizer(params, [["a text"]])
    assert tokenizer.vocab_size == expect_vocabulary(params) == 258
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is OffsetTokenizer
    assert (loaded.encode("a"), loaded.decode(loaded.encode("naïve"))) == ([255 - ord("a")], "naïve")
    with pytest.raises(ParameterError, match=r"^train_tokenizer\.digits=2: must be 3 for kind offset$"):
        tokenizer_params("offset")


@pytest.mark.parametrize(
    ("registry", "key", "known"),
    [
        (CATALOG, "download.source", "stdlib"),
        (FILTERS, "prepare.quality", "gopher"),
        (KINDS, "train_tokenizer.kind", "bpe"),
    ],
)
def test_permitted_names_are_those_of_the_registry(
    registry: dict[str, Any], key: str, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make: dict[str, Any] = {
        "download.source": lambda name: parse_section(
            DownloadParams, "download", DownloadParams().model_dump() | {"source": name}
        ),
        "prepare.quality": lambda name: make_params(quality=name),
        "train_tokenizer.kind": tokenizer_params,
    }
    monkeypatch.setitem(registry, "registered", registry[known])
    make[key]("registered")
    *first, last = registry
    listed = ", ".join(f"'{name}'" for name in first) + f" or '{last}'"
    message = re.escape(f"{key}='registred': must be {listed}, did you mean registered?")
    with pytest.raises(ParameterError, match=f"^{message}$"):
        make[key]("registred")


def list_rows(heading: str) -> dict[str, list[str]]:
    """The rows of the table in docs/data.md whose first line begins with `heading`, by their first cell."""
    lines = DOCS[DOCS.index(f"\n| {heading} |") :].strip().splitlines()
    table = lines[: next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table[2:]]
    return {row[0]: row[1:] for row in rows}


def list_names(text: str) -> list[str]:
    return re.findall("`([^`]+)`", text)


def test_the_docs_list_every_source() -> None:
    rows = list_rows("name | download | documents | licence")
    assert [name for row in rows for name in list_names(row)] == list(CATALOG)
    for name, source in CATALOG.items():
        _, documents, licence = rows[f"`{name}`"]
        assert licence == (source.licence or "yours")
        assert source.documents is None or documents.startswith(f"{source.documents:,}")


def test_the_docs_list_every_format() -> None:
    rows = list_rows("name | documents")
    readable = {suffix for row in rows if not row.startswith("any other") for suffix in list_names(row)}
    assert readable == set(FORMATS)
    (refused,) = (row for row, (documents,) in rows.items() if "unsupported_format" in documents)
    assert list_names(refused) == [suffix for suffix, format_ in FORMATS.items() if format_ is UNSUPPORTED]


def test_the_docs_list_every_filter_and_kind() -> None:
    assert [name for row in list_rows("`prepare.quality` | rules") for name in list_names(row)] == list(FILTERS)
    rows = list_rows("`train_tokenizer.kind` | entries | keys that it reads")
    assert {row.strip("`"): tuple(list_names(keys)) for row, (_, keys) in rows.items()} == {
        name: kind.reads for name, kind in KINDS.items()
    }
