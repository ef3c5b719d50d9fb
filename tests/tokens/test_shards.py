"""Token shards: the files, their manifest, and reading them as one stream."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import encode_texts

from lmcore.encode.shard_writer import SplitWriter
from lmcore.errors import ArtifactError
from lmcore.files import sha256_file
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokenizer.char import CharTokenizer
from lmcore.tokens.checksums import VerifiedFiles
from lmcore.tokens.shards import TokenShards

TEXT = "abcdefghijklmnopqrstuvw"  # 23 tokens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The train split of TEXT in shards of 10, 10 and 3 byte tokens."""
    encode_texts(10, {"train": [[TEXT]]}, ByteTokenizer.create(), tmp_path / "tokens")
    return tmp_path / "tokens"


@settings(deadline=None, max_examples=60)
@given(parts=st.lists(st.lists(st.integers(0, 65535), max_size=12)), shard_tokens=st.integers(1, 15))
def test_the_files_are_numpy_s_own(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]], shard_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    with SplitWriter(folder, "train", shard_tokens, "uint16", end_of_text=65535) as writer:
        writer.open_document("text")
        for part in parts:
            writer.append(np.array(part, dtype=np.uint32), 0)
    tokens = [token for part in parts for token in part]
    entries = writer.describe(VerifiedFiles())["shards"]
    assert [entry["tokens"] for entry in entries[:-1]] == [shard_tokens] * (len(entries) - 1)
    for number, entry in enumerate(entries):
        expected = tokens[number * shard_tokens : (number + 1) * shard_tokens]
        np.save(folder / "expected.npy", np.array(expected, dtype="<u2"))
        assert (folder / entry["file"]).read_bytes() == (folder / "expected.npy").read_bytes()
        assert entry["sha256"] == sha256_file(folder / entry["file"])
    assert sum(entry["tokens"] for entry in entries) == len(tokens)


def test_the_stream_is_a_virtual_end_of_text_and_all_tokens(folder: Path) -> None:
    shards = TokenShards.open(folder, "train")
    stream = [256, *TEXT.encode()]
    assert (shards.tokens, shards.bytes, len(shards)) == (23, 23, 24)
    assert (shards.vocab_size, shards.end_of_text) == (257, 256)
    for start in range(24):
        for length in range(1, 25 - start):
            window = shards.read(start, length)
            assert window.tolist() == stream[start : start + length]
            assert window.dtype == np.int64


def test_windows_are_read_one_by_one(folder: Path) -> None:
    shards = TokenShards.open(folder, "train")
    starts = [0, 15, 8, 0, 19]
    assert shards.read_windows(starts, 5).tolist() == [shards.read(start, 5).tolist() for start in starts]


def test_a_window_is_the_reader_s_own(folder: Path) -> None:
    shards = TokenShards.open(folder, "train")
    shards.read(0, 5)[:] = 0
    assert shards.read(0, 5).tolist() == [256, *b"abcd"]


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 25), (24, 1), (3, 0)])
def test_reading_outside_the_stream_is_our_own_mistake(folder: Path, start: int, length: int) -> None:
    with pytest.raises(AssertionError):
        TokenShards.open(folder, "train").read(start, length)


def test_the_fingerprint_is_the_tokens(folder: Path, tmp_path: Path) -> None:
    for name, text in (("same", TEXT), ("other", TEXT[::-1])):
        splits = {"train": [[text]], "validation": [["x"]]}
        encode_texts(10, splits, ByteTokenizer.create(), tmp_path / name)
    first = TokenShards.open(folder, "train").fingerprint
    assert TokenShards.open(tmp_path / "same", "train").fingerprint == first
    assert TokenShards.open(tmp_path / "other", "train").fingerprint != first


def test_another_tokenizer_is_refused_by_name(folder: Path) -> None:
    shards = TokenShards.open(folder, "train")
    mine, other = ByteTokenizer.create(), CharTokenizer.train([[TEXT]])
    shards.require_tokenizer(mine)
    message = (
        f"train tokens were made by tokenizer {mine.fingerprint[:12]}, not by {other.fingerprint[:12]}: run the encode"
    )
    with pytest.raises(ArtifactError, match=message):
        shards.require_tokenizer(other)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    *rest, last = path.read_bytes()
    path.write_bytes(bytes([*rest, last ^ 1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [(Path.unlink, "does not exist"), (cut, "is damaged"), (flip, "is damaged: its sha256 is"), (Path.touch, None)],
)
@pytest.mark.parametrize("name", ["train-00001.npy", "train-documents.npy"])
def test_a_damaged_file_is_named(folder: Path, name: str, damage: Callable[[Path], None], message: str | None) -> None:
    verify(folder)
    damage(folder / name)
    if message is None:
        verify(folder)
        return
    with pytest.raises(ArtifactError, match=rf"{name} {message}.*: run the encode stage"):
        verify(folder)


def verify(folder: Path) -> None:
    TokenShards.open(folder, "train").verify(VerifiedFiles(folder.parent / "verified"))


def test_shards_that_changed_places_are_refused(folder: Path) -> None:
    verify(folder)
    (folder / "train-00000.npy").rename(folder / "0")
    (folder / "train-00001.npy").rename(folder / "train-00000.npy")
    (folder / "0").rename(folder / "train-00001.npy")
    with pytest.raises(ArtifactError, match=r"train-00000\.npy is damaged: its sha256 is"):
        verify(folder)


def test_an_id_outside_the_vocabulary_is_named(folder: Path) -> None:
    np.save(folder / "train-00001.npy", np.array([*b"1234", 257, 300, *b"7890"], np.uint16))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][1]["sha256"] = sha256_file(folder / "train-00001.npy")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ArtifactError,
        match=r"train-00001\.npy: the id at position 4 \(from 0\) is 257, the vocabulary ends with 256 \(vocab_",
    ):
        verify(folder)
    manifest["vocab_size"] = 301
    (folder / "manifest.json").write_text(json.dumps(manifest))
    verify(folder)


def drop_splits(manifest: dict[str, Any]) -> None:
    del manifest["splits"]


def drop_bytes(manifest: dict[str, Any]) -> None:
    del manifest["splits"]["train"]["bytes"]


def change_dtype(manifest: dict[str, Any]) -> None:
    manifest["dtype"] = "uint32"


def change_count(manifest: dict[str, Any]) -> None:
    manifest["splits"]["train"]["shards"][1]["tokens"] = 9


def drop_shard(manifest: dict[str, Any]) -> None:
    manifest["splits"]["train"]["shards"].pop()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_splits, r"manifest\.json does not describe a split 'train' \(KeyError: 'splits'\)"),
        (drop_bytes, r"manifest\.json does not describe a split 'train' \(KeyError: 'bytes'\)"),
        (
            change_dtype,
            r"train-00000\.npy is damaged: it has 148 bytes, manifest\.json promises 10 numbers of uint32, which.*168",
        ),
        (
            change_count,
            r"train-00001\.npy is damaged: it has 148 bytes, manifest\.json promises 9 numbers of uint16, which.*146",
        ),
        (drop_shard, r"manifest\.json promises 23 train tokens, its shards hold 20"),
    ],
)
def test_a_manifest_that_does_not_fit_is_named(
    folder: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    damage(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=rf"{message}: run the encode stage"):
        TokenShards.open(folder, "train")


def test_another_type_of_one_size_is_found_on_reading(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "dtype": "int16"}))
    shards = TokenShards.open(folder, "train")
    with pytest.raises(
        ArtifactError, match=r"holds uint16 \(10,\), manifest\.json promises int16 \(10,\): run the enc"
    ):
        shards.read(0, 5)


def test_no_manifest_or_no_such_split_names_the_way_out(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json does not exist: run the encode stage"):
        TokenShards.open(tmp_path, "train")
    with pytest.raises(ArtifactError, match=r"does not describe a split 'test' .*: run the encode stage"):
        TokenShards.open(folder, "test")
