"""What was verified is not read again, and what was touched is, once."""

import hashlib
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import Texts, encode_texts

from lmcore.encode.encode import encode_splits
from lmcore.encode.params import EncodeParams
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokens import checksums as verified
from lmcore.tokens.checksums import Contents, VerifiedFiles
from lmcore.tokens.shards import TokenShards


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read through, as it happens."""
    names = []
    read = verified._read

    def noted(path: Path) -> Contents:
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(verified, "_read", noted)
    return names


def save(path: Path, ids: list[int]) -> Contents:
    np.save(path, np.array(ids, np.uint16))
    return Contents(hashlib.sha256(path.read_bytes()).hexdigest(), max(ids, default=-1))


@pytest.mark.parametrize("count", [0, 1, 7, 1 << 19, (1 << 19) + 1])
def test_one_pass_finds_checksum_and_largest(tmp_path: Path, count: int) -> None:
    ids = np.random.default_rng(count).integers(0, 60_000, count).tolist()
    expected = save(tmp_path / "a.npy", ids)
    assert VerifiedFiles().examine(tmp_path / "a.npy") == expected
    np.save(tmp_path / "b.npy", np.array(ids, np.uint32) * 70_000)
    assert VerifiedFiles().examine(tmp_path / "b.npy").largest == (max(ids) * 70_000 if ids else -1)


def test_what_is_no_array_has_a_checksum(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", [1])
    no_end = (tmp_path / "a.npy").read_bytes().replace(b"}", b" ", 1)
    for content in (b"", b"\x93NUMPY", b"text", no_end):
        (tmp_path / "a.npy").write_bytes(content)
        assert VerifiedFiles().examine(tmp_path / "a.npy") == Contents(hashlib.sha256(content).hexdigest(), -1)


def rewrite(path: Path) -> None:
    save(path, [1, 2, 4])


def rewrite_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x09")


def replace(path: Path) -> None:
    """Another file of the same size and time."""
    times = path.stat()
    save(path.with_name("new.npy"), [9, 9, 9])
    os.utime(path.with_name("new.npy"), ns=(times.st_atime_ns, times.st_mtime_ns))
    path.with_name("new.npy").rename(path)


@pytest.mark.parametrize("touch", [rewrite, rewrite_in_place, replace, Path.touch])
def test_what_was_touched_is_read_again_once(tmp_path: Path, reads: list[str], touch: Callable[[Path], None]) -> None:
    path, memory = tmp_path / "a.npy", tmp_path / "memory"
    save(path, [1, 2, 3])
    first = VerifiedFiles(memory).examine(path)
    assert VerifiedFiles(memory).examine(path) == first
    assert reads == ["a.npy"]
    touch(path)
    second = VerifiedFiles(memory).examine(path)
    assert second.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert VerifiedFiles(memory).examine(path) == second
    assert reads == ["a.npy"] * 2


def test_what_a_file_was_before_is_forgotten(tmp_path: Path) -> None:
    path, memory = tmp_path / "a.npy", tmp_path / "memory"
    for number in range(3):
        save(path, [number])
        VerifiedFiles(memory).examine(path)
        assert len(list(memory.iterdir())) == 1


def test_what_others_put_there_is_passed_over(tmp_path: Path, reads: list[str]) -> None:
    contents, memory = save(tmp_path / "a.npy", [1]), tmp_path / "memory"
    VerifiedFiles(memory).examine(tmp_path / "a.npy")
    for name in (".DS_Store", "a.b.c", f"{next(memory.iterdir()).name}~"):
        (memory / name).touch()
    assert VerifiedFiles(memory).examine(tmp_path / "a.npy") == contents
    assert reads == ["a.npy"]


def test_encode_remembers_what_it_has_written(tmp_path: Path, reads: list[str]) -> None:
    memory = tmp_path / "memory"
    splits = {split: [Texts([["some text", "more"]])] for split in ("train", "validation")}
    params = EncodeParams(shard_tokens=4, tokenized=None)
    tokens, scratch = tmp_path / "tokens", tmp_path / "scratch"
    encode_splits(params, splits, ByteTokenizer.create(), tokens, scratch=scratch, verified=VerifiedFiles(memory))
    assert sorted(reads) == sorted(path.name for path in tokens.glob("*.npy"))
    reads.clear()
    TokenShards.open(tokens, "train").verify(VerifiedFiles(memory))
    assert reads == []


def test_opening_reads_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_texts(2, {"train": [["some text"] * 50]}, ByteTokenizer.create(), tmp_path / "tokens")
    opened = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda path, **options: opened.append(path.name) or load(path, **options))
    shards = TokenShards.open(tmp_path / "tokens", "train")
    assert opened == []
    shards.read(4, 3)
    assert opened == ["train-00001.npy", "train-00002.npy"]
    shards.read(4, 3)
    assert len(opened) == 2


def examine_many(folder: Path, memory: Path) -> None:
    for _ in range(3):
        for path in sorted(folder.glob("*.npy")):
            assert VerifiedFiles(memory).examine(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_two_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path / f"{number}.npy", [number] * 1000)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=examine_many, args=(tmp_path, tmp_path / "memory")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list((tmp_path / "memory").iterdir())) == 20
