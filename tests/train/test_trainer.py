"""What is read before a training, and by which of its processes."""

import shutil
from pathlib import Path

import pytest
from tiny import TINY_TRAIN, encode_texts, make_texts

from lmcore.errors import ArtifactError, ParameterError
from lmcore.hardware.distributed import World
from lmcore.params import parse_section
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokens import checksums as verified
from lmcore.tokens.dataset import open_dataset
from lmcore.train.params import TrainParams
from lmcore.train.trainer import open_batches


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    splits = {"train": [make_texts(9, 1)], "validation": [make_texts(2, 2)]}
    encode_texts(1000, splits, ByteTokenizer.create(), tmp_path / "tokens")
    return tmp_path / "tokens"


@pytest.mark.parametrize("name", ["train-00001.npy", "validation-00000.npy", "validation-documents.npy"])
def test_the_main_process_reads_all_for_all(tokens: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (tokens / name).read_bytes()
    (tokens / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    dataset = open_dataset(tokens, ByteTokenizer.create())
    with pytest.raises(ArtifactError, match=rf"{name} is damaged: its sha256 is"):
        open_batches(TINY_TRAIN, 16, dataset, World())
    monkeypatch.setattr(verified, "_read", pytest.fail)
    batches = open_batches(TINY_TRAIN, 16, dataset, World(rank=1))  # one that is told to go on
    assert batches.at(0).shape == (4, 17)


def test_a_second_start_reads_nothing(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_batches(TINY_TRAIN, 16, open_dataset(tokens, ByteTokenizer.create()), World())
    with monkeypatch.context() as patch:
        patch.setattr(verified, "_read", pytest.fail)
        open_batches(TINY_TRAIN, 16, open_dataset(tokens, ByteTokenizer.create()), World())
    shutil.copy2(tokens / "train-00000.npy", tokens / "copy")
    (tokens / "copy").rename(tokens / "train-00000.npy")
    monkeypatch.setattr(verified, "_read", lambda path: pytest.fail(path.name))
    with pytest.raises(pytest.fail.Exception, match=r"^train-00000\.npy$"):
        open_batches(TINY_TRAIN, 16, open_dataset(tokens, ByteTokenizer.create()), World())


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({}, r"^train\.mixture=\{\}: must be one entry or more$"),
        ({"a": 0}, r"^train\.mixture\.a=0: must be greater than 0$"),
        ({"a": "much"}, r"^train\.mixture\.a='much': must be a number$"),
        ({"a": None}, r"^train\.mixture\.a is empty: must be a number$"),
        ("a", r"^train\.mixture='a': must be names with their values, as \{one: 0\.7, two: 0\.3\}$"),
    ],
)
def test_a_mixture_that_is_none_is_one_line(mixture: object, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse_section(TrainParams, "train", {**TINY_TRAIN.model_dump(), "mixture": mixture})
