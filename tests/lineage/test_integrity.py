"""Headers of weights, seals of checkpoints: what they promise, and every way of breaking it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lmcore.lineage.dvc_files import read_content
from lmcore.lineage.integrity import check_checkpoint, explain_weights
from lmcore.train.checkpoint import Checkpoints


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3, 2), "b": torch.zeros(5)}, path, metadata={"format": "pt"})
    return path


def test_what_its_own_library_writes_is_sound(weights: Path) -> None:
    assert explain_weights(weights) is None


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (0, "its header is cut off"),
        (7, "its header is cut off"),
        (50, "its header is cut off"),
        (-1, "bytes, its header"),
    ],
)
def test_cut_off(weights: Path, length: int, words: str) -> None:
    content = weights.read_bytes()
    weights.write_bytes(content[:length])
    assert words in (explain_weights(weights) or "")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{", "its header is damaged"),
        (b"[]", "its header is damaged"),
        (b'{"a": 1}', "its header is damaged"),
        (b'{"a": {"data_offsets": [4, 8]}}', "do not lie side by side"),
        (b'{"a": {"data_offsets": [0, 8]}, "b": {"data_offsets": [4, 8]}}', "do not lie side by side"),
        (b'{"a": {"data_offsets": [0, 8]}}', "bytes, its header promises"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    assert words in (explain_weights(path) or "")


def test_a_checkpoint_that_training_wrote(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(7, {"a": torch.arange(4)})
    (seal,) = tmp_path.glob("*.json")
    path = seal.with_suffix(".safetensors")
    assert check_checkpoint(seal, read_content(path)) is None
    assert check_checkpoint(seal, None) == "is gone, its seal is there"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    assert "differs: SHA-256" in (check_checkpoint(seal, read_content(path)) or "")
    path.write_bytes(content[:-1])
    assert "is torn" in (check_checkpoint(seal, read_content(path)) or "")
    seal.write_text(json.dumps([1]))
    assert check_checkpoint(seal, None) == "its seal is damaged"
