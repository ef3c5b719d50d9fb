"""Encoding documents: counts, separators, types, and nothing half-written."""

import fcntl
import json
import multiprocessing
import os
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Texts, encode_texts

from lmcore.encode.encode import TextPart, encode_splits
from lmcore.encode.params import EncodeParams
from lmcore.encode.shard_writer import SplitWriter
from lmcore.errors import ArtifactError, DataError, LmcoreError, report_errors
from lmcore.prepare.documents import DocumentPart
from lmcore.runtime.process_pool import Processes
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokens.shards import TokenShards

BYTE = ByteTokenizer.create()
BPE = BpeTokenizer.train([["the cat sat on the mat " * 3]], 290)

documents = st.lists(st.text("the catsmon é🙂", max_size=20), max_size=6)


@pytest.mark.parametrize("tokenizer", [BYTE, BPE])
@settings(deadline=None, max_examples=60)
@given(batches=st.lists(documents, max_size=3), shard_tokens=st.integers(1, 40))
def test_documents_come_back_with_end_of_text_between_them_only(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, batches: list[list[str]], shard_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("encode") / "tokens"
    texts = ["start", *(text for batch in batches for text in batch)]
    metrics = encode_texts(shard_tokens, {"train": iter([["start"], *batches])}, tokenizer, folder)
    shards = TokenShards.open(folder, "train")
    stream = shards.read(1, shards.tokens)
    assert tokenizer.decode(stream) == "<|endoftext|>".join(texts)
    assert (stream == tokenizer.end_of_text).sum() == len(texts) - 1
    size = sum(len(text.encode()) for text in texts)
    assert shards.bytes == size == tokenizer.byte_lengths[stream].sum()
    assert metrics == {"train_tokens": len(stream), "bytes_per_token": round(size / len(stream), 4), "dtype": "uint16"}


def test_both_splits_share_a_manifest(tmp_path: Path) -> None:
    splits = {"train": [["abc", "de"]], "validation": [["xy"]]}
    metrics = encode_texts(4, splits, BYTE, tmp_path / "tokens")
    assert metrics == {"train_tokens": 6, "validation_tokens": 2, "bytes_per_token": 0.875, "dtype": "uint16"}
    manifest = json.loads((tmp_path / "tokens" / "manifest.json").read_text())
    assert manifest["tokenizer"] == BYTE.fingerprint
    assert manifest["splits"]["train"]["documents"] == 2
    assert [shard["tokens"] for shard in manifest["splits"]["train"]["shards"]] == [4, 2]
    files = sorted(path.name for path in (tmp_path / "tokens").iterdir())
    train = ["train-00000.npy", "train-00001.npy", "train-documents.npy"]
    assert files == ["manifest.json", *train, "validation-00000.npy", "validation-documents.npy"]


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(st.text("ab", max_size=5), min_size=1, max_size=9), cuts=st.lists(st.integers(0, 9), max_size=3))
def test_offsets_and_sources_say_where_each_document_is(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("offsets")
    texts = ["first", *texts]
    edges = [0, *sorted(min(cut, len(texts)) for cut in cuts), len(texts)]
    parts = [Texts([texts[a:b]], f"source {number // 2}") for number, (a, b) in enumerate(pairwise(edges))]
    encode(folder, splits={"train": parts})
    shards = TokenShards.open(folder / "tokens", "train")
    stream = shards.read(0, len(shards))
    begins = shards.documents.tolist()
    assert [BPE.decode(stream[a + 1 : b]) for a, b in pairwise([*begins, len(stream)])] == texts
    assert (stream[begins] == BPE.end_of_text).all()
    expected: dict[str, list[str]] = {}
    for part in parts:
        expected.setdefault(part.source, []).extend(text for batch in part.read() for text in batch)
    expected = {name: texts for name, texts in expected.items() if texts}
    ends = [source.begin for source in shards.sources[1:]]
    assert [source.end for source in shards.sources] == [*ends, len(shards)]
    text = "<|endoftext|>"
    found = {source.name: BPE.decode(stream[source.begin : source.end]) for source in shards.sources}
    assert found == {name: text + text.join(texts) for name, texts in expected.items()}
    manifest = json.loads((folder / "tokens" / "manifest.json").read_text())
    entry = manifest["splits"]["train"]
    for unit in ("tokens", "documents", "bytes"):
        assert sum(source[unit] for source in entry["sources"]) == entry[unit]
    assert [source["documents"] for source in entry["sources"]] == [len(texts) for texts in expected.values()]


def test_the_table_of_documents_is_a_stream_too(tmp_path: Path) -> None:
    """A million documents of one letter: the table is larger than what the tokens take."""
    writer = SplitWriter(tmp_path, "train", 10**6, "uint16", 256)
    chunk = np.tile(np.array([97, 256], np.uint16), 5000)
    tracemalloc.start()
    with writer:
        writer.open_document("text")
        for _ in range(100):
            writer.append(chunk, 5000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert np.load(tmp_path / "train-documents.npy").tolist() == list(range(0, 10**6 + 1, 2))
    assert peak < 10**6


@pytest.mark.parametrize(("size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_the_type_is_the_smallest_that_holds_the_vocabulary(tmp_path: Path, size: int, dtype: str) -> None:
    ranks = {BYTE.token_bytes(byte): byte for byte in range(256)}
    tokenizer = BpeTokenizer.from_ranks(ranks, BPE.pattern, end_of_text=size - 1)
    metrics = encode_texts(99, {"train": [["a", "b"]]}, tokenizer, tmp_path / "tokens")
    assert metrics["dtype"] == dtype == str(np.load(tmp_path / "tokens" / "train-00000.npy").dtype)
    assert TokenShards.open(tmp_path / "tokens", "train").read(0, 4).tolist() == [size - 1, 97, size - 1, 98]


@pytest.mark.parametrize("texts", [[], [[]], [[""]]])
def test_a_split_without_text_is_a_data_error_and_leaves_nothing(tmp_path: Path, texts: list[list[str]]) -> None:
    with pytest.raises(DataError, match=r"the validation split holds no text: change prepare\.validation_fraction"):
        encode_texts(9, {"train": [["a"]], "validation": texts}, BYTE, tmp_path / "tokens")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_keeps_what_was_there(tmp_path: Path) -> None:
    encode_texts(3, {"train": [["before"]]}, BYTE, tmp_path / "tokens")

    def texts() -> Iterator[list[str]]:
        yield ["some text"]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        encode_texts(3, {"train": texts()}, BYTE, tmp_path / "tokens")
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]
    assert TokenShards.open(tmp_path / "tokens", "train").read(1, 6).tolist() == list(b"before")


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    for name, batches in (("one", [["a b", "c d", "e"]]), ("two", [["a b"], [], ["c d", "e"]])):
        encode_texts(4, {"train": batches}, BPE, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


PARTS = [Texts([[f"{number} the cat sat on the mat 🙂" * 3, ""], ["and that cat"]]) for number in range(9)]
SPLITS = {"train": [Texts([]), *PARTS[:7], Texts([[]])], "validation": PARTS[7:]}


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def encode(folder: Path, workers: int = 1, splits: Mapping[str, Sequence[TextPart]] = SPLITS) -> dict[str, bytes]:
    params = EncodeParams(shard_tokens=50, tokenized=None)
    with Processes(workers) as executor:
        encode_splits(params, splits, BPE, folder / "tokens", scratch=folder / "scratch", executor=executor)
    return read_folder(folder / "tokens")


def test_processes_and_parts_change_nothing(tmp_path: Path) -> None:
    one = encode(tmp_path / "one")
    assert encode(tmp_path / "three", workers=3) == one
    whole = {split: [Texts([batch for part in parts for batch in part.read()])] for split, parts in SPLITS.items()}
    assert encode(tmp_path / "whole", splits=whole) == one
    assert not list((tmp_path / "three" / "scratch").glob("*/"))


@dataclass(frozen=True)
class Sabotaged:
    """A part whose process dies while it reads it, as long as the file `alarm` is there."""

    texts: Texts
    alarm: Path
    size: int = 1
    source: str = "text"

    def fingerprint(self) -> str:
        return self.texts.fingerprint()

    def read(self) -> Iterator[list[str]]:
        yield from self.texts.read()
        if self.alarm.exists():
            os.kill(os.getpid(), signal.SIGKILL)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads = []
    read = Texts.read

    def counted(texts: Texts) -> Iterator[list[str]]:
        reads.append(texts.fingerprint())
        return read(texts)

    monkeypatch.setattr(Texts, "read", counted)
    return reads


def test_a_killed_process_is_one_line_and_what_was_done_stays_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarm = tmp_path / "alarm"
    alarm.touch()
    splits = {**SPLITS, "validation": [*PARTS[7:], Sabotaged(Texts([["last"]]), alarm)]}
    with pytest.raises(LmcoreError, match=r"^one of 2 processes that work on the text was killed.* hardware\.workers"):
        encode(tmp_path, workers=2, splits=splits)
    assert not (tmp_path / "tokens").exists()
    alarm.unlink()
    reads = count_reads(monkeypatch)
    again = encode(tmp_path, splits=splits)
    assert not set(reads) & {part.fingerprint() for part in SPLITS["train"]}  # they waited in scratch
    assert again == encode(tmp_path / "other", splits=splits)


def test_a_killed_stage_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alarm = tmp_path / "alarm"
    alarm.touch()
    splits = {**SPLITS, "train": [*SPLITS["train"], Sabotaged(Texts([["last"]]), alarm)]}
    process = multiprocessing.get_context("spawn").Process(target=encode, args=(tmp_path, 1, splits))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "tokens").exists()
    alarm.unlink()
    reads = count_reads(monkeypatch)
    again = encode(tmp_path, splits=splits)
    assert set(reads) == {part.fingerprint() for part in [*PARTS[7:], Texts([["last"]])]}
    assert again == encode(tmp_path / "other", splits=splits)


def test_what_an_abandoned_stage_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "scratch" / "0123"
    (left / "part").mkdir(parents=True)
    held = tmp_path / "scratch" / "4567"
    held.mkdir()
    left.with_suffix(".lock").touch()
    with held.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        encode(tmp_path)
        assert held.exists()
    assert not left.exists()


@pytest.mark.slow
def test_two_at_once_are_as_good_as_one(tmp_path: Path) -> None:
    expected = encode(tmp_path / "one")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=encode_into, args=(tmp_path, name)) for name in ("a", "b", "c")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert all(read_folder(tmp_path / name) == expected for name in ("a", "b", "c"))


def encode_into(folder: Path, name: str) -> None:
    """As two experiments in one project: each its own output, the same scratch."""
    encode_splits(EncodeParams(shard_tokens=50, tokenized=None), SPLITS, BPE, folder / name, scratch=folder / "scratch")


def test_what_a_worker_refuses_is_refused_here(tmp_path: Path) -> None:
    parts = [*PARTS[:3], DocumentPart(tmp_path / "part-00000.parquet")]
    (tmp_path / "part-00000.parquet").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"part-00000\.parquet is damaged"):
        encode(tmp_path, workers=2, splits={"train": parts})


@dataclass(frozen=True)
class Slow:
    """A part that waits for its end until it is killed; its process tells its number."""

    folder: Path
    name: str
    size: int = 1
    source: str = "text"

    def fingerprint(self) -> str:
        return self.name

    def read(self) -> Iterator[list[str]]:
        (self.folder / f"{os.getpid()}.pid").touch()
        time.sleep(600)
        yield ["never"]


def test_no_worker_outlives_a_killed_stage(tmp_path: Path) -> None:
    splits = {"train": [Slow(tmp_path, name) for name in "abcd"]}
    process = multiprocessing.get_context("spawn").Process(target=encode, args=(tmp_path, 2, splits))
    process.start()
    wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    process.kill()
    process.join()
    wait_for(lambda: not any(map(is_alive, workers)))


def test_an_interrupted_stage_ends_at_once_with_one_line(tmp_path: Path) -> None:
    """As Ctrl-C in a terminal does: every process gets the signal, also those that wait for work."""
    parts = [Slow(tmp_path, "a"), *PARTS[:1]]
    process = multiprocessing.get_context("spawn").Process(target=encode_apart, args=(tmp_path, {"train": parts}))
    process.start()
    wait_for(lambda: bool([*tmp_path.glob("*.pid")] and [*(tmp_path / "scratch").glob("*/*")]))
    (worker,) = (int(path.stem) for path in tmp_path.glob("*.pid"))
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGINT)
    process.join(timeout=300)
    assert process.exitcode == 130
    assert (tmp_path / "stderr").read_text() == "interrupted: run the same command again\n"
    wait_for(lambda: not is_alive(worker))


def encode_apart(folder: Path, splits: dict[str, Sequence[TextPart]]) -> None:
    """`encode` by two workers in a process group of its own, what all of them say in a file."""
    os.setsid()
    with (folder / "stderr").open("w") as file:
        os.dup2(file.fileno(), 2)
    with report_errors():
        encode(folder, 2, splits)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """An orphan that ended may stay as a zombie, where nobody looks after them."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize("name", ["tokens.npy", "counts.json"])
def test_a_damaged_part_is_said_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    expected = encode(tmp_path / "one")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lmcore.encode.encode.SplitWriter.describe", raise_interrupt)
        encode(tmp_path)
    (part, *_) = (tmp_path / "scratch").glob("*/*/")
    (part / name).write_bytes(b"")
    with pytest.raises(ArtifactError, match=rf"{part.name} is damaged .* removed: run the same command again"):
        encode(tmp_path)
    assert encode(tmp_path) == expected


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
