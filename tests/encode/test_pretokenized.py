"""Tokens that others made: their files as they write them, and what is wrong with one in one line."""

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.encode import pretokenized as tokenized
from lmcore.encode.pretokenized import find_changed_tokens, take_tokens
from lmcore.errors import DataError, LmcoreError, ParameterError
from lmcore.files import write_json
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokens.checksums import VerifiedFiles
from lmcore.tokens.shards import TokenShards

TOKENIZER = ByteTokenizer.create()
END = TOKENIZER.end_of_text
VALIDATION = [END, *b"held out", END]


def write_nanogpt(path: Path, ids: Sequence[int]) -> None:
    """As data/openwebtext/prepare.py of nanoGPT."""
    array = np.memmap(path, dtype=np.uint16, mode="w+", shape=(len(ids),))
    array[:] = ids
    array.flush()


def write_llmc(path: Path, ids: Sequence[int], magic: int = 20240520, version: int = 1) -> None:
    """As dev/data/data_common.py of llm.c."""
    header = np.zeros(256, dtype=np.int32)
    header[:3] = magic, version, len(ids)
    path.write_bytes(header.tobytes() + np.array(ids, np.uint16 if version == 1 else np.uint32).tobytes())


def write_llama(path: Path, ids: Sequence[int]) -> None:
    write_llmc(path, ids, 20240801, 7)


def write_array(path: Path, ids: Sequence[int]) -> None:
    np.save(path, np.array(ids, np.int64))


def write_lines(path: Path, ids: Sequence[int]) -> None:
    path.write_text("".join(f"{token}\n" for token in ids))


def write_words(path: Path, ids: Sequence[int]) -> None:
    path.write_text(" \t".join(map(str, ids)))


FORMS: list[tuple[Callable[[Path, Sequence[int]], None], str, str]] = [
    (write_nanogpt, "train.bin", "val.bin"),
    (write_llmc, "tiny_shakespeare_train.bin", "tiny_shakespeare_val.bin"),
    (write_llama, "train.bin", "val.bin"),
    (write_array, "train.npy", "validation.npy"),
    (write_lines, "train.txt", "val.txt"),
    (write_words, "train.ids", "validation.ids"),
]


def take(folder: Path, tokenizer: Tokenizer = TOKENIZER, shard_tokens: int = 7) -> TokenShards:
    take_tokens(str(folder / "theirs"), shard_tokens, tokenizer, folder / "tokens", VerifiedFiles())
    return TokenShards.open(folder / "tokens", "train")


def write_both(folder: Path, ids: Sequence[int], form: int = 0) -> Path:
    write, train, validation = FORMS[form]
    (folder / "theirs").mkdir(exist_ok=True)
    write(folder / "theirs" / validation, VALIDATION)
    write(folder / "theirs" / train, ids)
    return folder / "theirs" / train


@pytest.mark.parametrize("form", range(len(FORMS)))
@settings(deadline=None, max_examples=20)
@given(
    texts=st.lists(st.binary(max_size=20), min_size=1, max_size=8).filter(any),
    before=st.booleans(),
    after=st.booleans(),
    chunk=st.sampled_from([8, 16, 1 << 20]),
)
def test_documents_come_back_however_they_are_ended(
    tmp_path_factory: pytest.TempPathFactory, form: int, texts: list[bytes], before: bool, after: bool, chunk: int
) -> None:
    """End-of-text ends each document of nanoGPT and begins each of llm.c; here it stands between them."""
    folder = tmp_path_factory.mktemp("tokenized")
    texts = [b"first", *texts, b"last"]
    ids = [token for text in texts for token in (*([END] if before else []), *text, *([END] if after else []))]
    if before == after:
        ids = [token for text in texts for token in (*text, END)][:-1]
        ids = [END, *ids, END] if before else ids
    path = write_both(folder, ids, form)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenized, "CHUNK_BYTES", chunk)
        shards = take(folder)
    shards.verify(VerifiedFiles())
    stream = shards.read(0, len(shards))
    assert [bytes(stream[a + 1 : b].tolist()) for a, b in pairwise([*shards.documents.tolist(), len(stream)])] == texts
    assert shards.bytes == sum(map(len, texts))
    manifest = json.loads((folder / "tokens" / "manifest.json").read_text())
    entry = {"file": path.name, "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert manifest["tokenized"]["files"][0] == entry
    assert shards.tokenized[path.name] == entry["sha256"]


def test_a_set_in_many_files_is_one_stream(tmp_path: Path) -> None:
    write_both(tmp_path, [])
    (tmp_path / "theirs" / "train.bin").unlink()
    for number, part in enumerate(([END, *b"one"], [*b"more", END], list(b"two"))):
        write_llmc(tmp_path / "theirs" / f"web_train_{number:06d}.bin", part)
    shards = take(tmp_path)
    assert shards.read(0, len(shards)).tolist() == [END, *b"onemore", END, *b"two"]


def test_large_ids_stay_whole(tmp_path: Path) -> None:
    ranks = {TOKENIZER.token_bytes(byte): byte for byte in range(256)}
    large = BpeTokenizer.from_ranks(ranks, r"\p{L}|[^\p{L}]", end_of_text=70_000)
    (tmp_path / "theirs").mkdir()
    for name in ("train.bin", "val.bin"):
        write_llama(tmp_path / "theirs" / name, [65, 70_000, 66])
    assert take(tmp_path, large).read(0, 4).tolist() == [70_000, 65, 70_000, 66]
    write_nanogpt(tmp_path / "theirs" / "train.bin", [65])
    with pytest.raises(
        DataError, match=r"train\.bin has no header, hence tokens of 16 bits, which cannot name the 70001"
    ):
        take(tmp_path, large)


def write_odd(path: Path) -> None:
    path.write_bytes(b"abc")


def promise_more(path: Path) -> None:
    write_llmc(path, [1, 2, 3])
    path.write_bytes(path.read_bytes()[:-2])


def open_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"}", b" ", 1))


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def name_another(path: Path) -> None:
    path.unlink()
    path.with_name("training.bin").touch()


def add_another(path: Path) -> None:
    write_lines(path.with_suffix(".txt"), [1])


@pytest.mark.parametrize(
    ("form", "damage", "error", "message"),
    [
        (0, write_odd, DataError, r"train\.bin has 3 bytes: must be a multiple of 2, as tokens are uint16"),
        (0, lambda path: path.write_bytes(b""), DataError, r"train\.bin holds no tokens"),
        (0, lambda path: write_nanogpt(path, [END, END]), DataError, r"train\.bin: there is no token but end-of-text"),
        (
            0,
            lambda path: write_nanogpt(path, [1, 2, 257]),
            DataError,
            r"position 2 \(from 0\) is 257, .*vocab_size 257",
        ),
        (
            0,
            name_another,
            ParameterError,
            r"^encode\.tokenized='.*': no train tokens in .*: there must be train\.bin, tr",
        ),
        (0, make_a_folder, ParameterError, r"no train tokens in .*: there must be train\.bin, tr"),
        (0, add_another, ParameterError, r"train\.bin and train\.txt could both be the train tokens: keep one of them"),
        (1, promise_more, DataError, r"is damaged: its header promises 3 tokens of uint16, 4 bytes follow"),
        (1, lambda path: write_llmc(path, [1], version=2), DataError, r"llm\.c's version 2 of 20240520 is none that"),
        (
            3,
            lambda path: write_array(path, [1, -2]),
            DataError,
            r"train\.npy: the id at position 1 \(from 0\) is -2, ou",
        ),
        (
            3,
            lambda path: np.save(path, np.ones((2, 2))),
            DataError,
            r"holds float64 \(2, 2\): must be whole numbers in",
        ),
        (3, lambda path: path.write_bytes(b"text"), DataError, r"train\.npy is no \.npy file"),
        (3, open_the_header, DataError, r"train\.npy is no \.npy file"),
        (4, lambda path: path.write_text("1 2\nthree"), DataError, r"'three' at position 2 \(from 0\) is no token id"),
        (
            4,
            lambda path: path.write_text("1 -2 3"),
            DataError,
            r"'-2' at position 1 \(from 0\) is no token id: must be w",
        ),
        (
            4,
            lambda path: path.write_text("1 " + "9" * 5000),
            DataError,
            r"'9{20}' at position 1 \(from 0\) is no token",
        ),
        (4, lambda path: path.write_text("1 2\n1_0"), DataError, r"'1_0' at position 2"),
        (4, lambda path: path.write_text("0 999999"), DataError, r"position 1 \(from 0\) is 999999, outside the token"),
        (4, lambda path: path.write_text(" \n "), DataError, r"train\.txt holds no tokens"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    tmp_path: Path, form: int, damage: Callable[[Path], object], error: type[LmcoreError], message: str
) -> None:
    damage(write_both(tmp_path, [1, 2, 3], form))
    with pytest.raises(error, match=message) as caught:
        take(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_no_folder_and_no_validation(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"theirs is no folder; a relative path begins at dvc\.yaml's folder"):
        take(tmp_path)
    write_both(tmp_path, [1])
    (tmp_path / "theirs" / "val.bin").unlink()
    with pytest.raises(
        ParameterError, match=r"no validation tokens in .*: there must be val\.bin, val\.npy, val\.txt or"
    ):
        take(tmp_path)


def test_files_that_changed_since_are_found(tmp_path: Path) -> None:
    path = write_both(tmp_path, [1, 2, 3])
    take(tmp_path)
    assert find_changed_tokens(tmp_path / "tokens") == []
    write_nanogpt(path, [1, 2, 4])
    path.with_name("val.bin").unlink()
    write_nanogpt(path.with_name("train_2.bin"), [5])
    path.with_name("notes.md").touch()
    assert find_changed_tokens(tmp_path / "tokens") == ["train.bin", "train_2.bin", "val.bin"]
    write_json(tmp_path / "tokens" / "manifest.json", {"splits": {}})
    assert find_changed_tokens(tmp_path / "tokens") == []
