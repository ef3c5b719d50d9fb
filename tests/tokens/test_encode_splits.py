"""Encoding documents: counts, separators, types, and nothing half-written."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.errors import DataError
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokens.encode import EncodeParams, encode_splits
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
    metrics = encode_splits(
        EncodeParams(shard_tokens=shard_tokens), {"train": iter([["start"], *batches])}, tokenizer, folder
    )
    shards = TokenShards.open(folder, "train")
    stream = shards.read(1, shards.tokens)
    assert tokenizer.decode(stream) == "<|endoftext|>".join(texts)
    assert (stream == tokenizer.end_of_text).sum() == len(texts) - 1
    size = sum(len(text.encode()) for text in texts)
    assert shards.bytes == size == tokenizer.byte_lengths[stream].sum()
    assert metrics == {"train_tokens": len(stream), "bytes_per_token": round(size / len(stream), 4), "dtype": "uint16"}


def test_both_splits_share_a_manifest(tmp_path: Path) -> None:
    splits = {"train": [["abc", "de"]], "validation": [["xy"]]}
    metrics = encode_splits(EncodeParams(shard_tokens=4), splits, BYTE, tmp_path / "tokens")
    assert metrics == {"train_tokens": 6, "validation_tokens": 2, "bytes_per_token": 0.875, "dtype": "uint16"}
    manifest = json.loads((tmp_path / "tokens" / "manifest.json").read_text())
    assert manifest["tokenizer"] == BYTE.fingerprint
    assert manifest["splits"]["train"]["documents"] == 2
    assert [shard["tokens"] for shard in manifest["splits"]["train"]["shards"]] == [4, 2]
    files = sorted(path.name for path in (tmp_path / "tokens").iterdir())
    assert files == ["manifest.json", "train-00000.npy", "train-00001.npy", "validation-00000.npy"]


@pytest.mark.parametrize(("size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_the_type_is_the_smallest_that_holds_the_vocabulary(tmp_path: Path, size: int, dtype: str) -> None:
    ranks = {BYTE.token_bytes(byte): byte for byte in range(256)}
    tokenizer = BpeTokenizer.from_ranks(ranks, BPE.pattern, end_of_text=size - 1)
    metrics = encode_splits(EncodeParams(shard_tokens=99), {"train": [["a", "b"]]}, tokenizer, tmp_path / "tokens")
    assert metrics["dtype"] == dtype == str(np.load(tmp_path / "tokens" / "train-00000.npy").dtype)
    assert TokenShards.open(tmp_path / "tokens", "train").read(0, 4).tolist() == [size - 1, 97, size - 1, 98]


@pytest.mark.parametrize("texts", [[], [[]], [[""]]])
def test_a_split_without_text_is_a_data_error_and_leaves_nothing(tmp_path: Path, texts: list[list[str]]) -> None:
    with pytest.raises(DataError, match=r"the validation split holds no text: change prepare\.validation_fraction"):
        encode_splits(EncodeParams(shard_tokens=9), {"train": [["a"]], "validation": texts}, BYTE, tmp_path / "tokens")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_keeps_what_was_there(tmp_path: Path) -> None:
    encode_splits(EncodeParams(shard_tokens=3), {"train": [["before"]]}, BYTE, tmp_path / "tokens")

    def texts() -> Iterator[list[str]]:
        yield ["some text"]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        encode_splits(EncodeParams(shard_tokens=3), {"train": texts()}, BYTE, tmp_path / "tokens")
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]
    assert TokenShards.open(tmp_path / "tokens", "train").read(1, 6).tolist() == list(b"before")


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    for name, batches in (("one", [["a b", "c d", "e"]]), ("two", [["a b"], [], ["c d", "e"]])):
        encode_splits(EncodeParams(shard_tokens=4), {"train": batches}, BPE, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
