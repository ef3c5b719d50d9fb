"""Headers of weights, seals of checkpoints: what they promise, and every way of breaking it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lmcore.lineage.dvc_files import read_content
from lmcore.lineage.integrity import check_checkpoint, check_weights
from lmcore.train.checkpoint import Checkpoints


def complain(folder: Path) -> list[str]:
    path = folder / "model.safetensors"
    return [fault.text for fault in check_weights(folder, {path.name: read_content(path)})]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3, 2), "b": torch.zeros(5)}, path, metadata={"format": "pt"})
    return path


def test_what_its_own_library_writes_is_sound(weights: Path) -> None:
    assert complain(weights.parent) == []


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (0, "header too small"),
        (7, "header too small"),
        (50, "invalid header length"),
        (-1, "file not fully covered"),
    ],
)
def test_cut_off(weights: Path, length: int, words: str) -> None:
    content = weights.read_bytes()
    weights.write_bytes(content[:length])
    (text,) = complain(weights.parent)
    assert text.startswith("its header and its length do not fit: ")
    assert words in text


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{", "invalid JSON"),
        (b"[]", "invalid JSON"),
        (b'{"a": 1}', "invalid JSON"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "invalid offset"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', "file not fully covered"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: bytes, words: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    (text,) = complain(tmp_path)
    assert words in text


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
