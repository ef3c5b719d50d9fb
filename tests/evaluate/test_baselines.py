"""Compressors against their commands, and the text that tokens stand for."""

import gzip
import lzma
import random
import shutil
import subprocess

import numpy as np
import pytest
from tiny import tokenizer_params

from lmcore.evaluate.baselines import compress, read_text
from lmcore.tokenizer.base import Tokenizer
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

WORDS = random.Random(0).choices(["tree", "river", "stone", "cloud", "ash"], k=20_000)
TEXT = " ".join(WORDS).encode()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(tokenizer_params("bpe"), [["the cat and the hat, näive 日本"]])


def test_bits_per_byte_are_the_libraries() -> None:
    bits = compress(TEXT)
    assert bits["gzip"] == 8 * len(gzip.compress(TEXT, compresslevel=9)) / len(TEXT)
    assert bits["xz"] == 8 * len(lzma.compress(TEXT, preset=9)) / len(TEXT)
    assert lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(lzma.compress(TEXT, preset=9)) == TEXT
    assert list(bits) == ["gzip", "xz", "zstd"]


@pytest.mark.parametrize("command", ["gzip -9", "xz -9", "zstd --ultra -22"])
def test_bits_per_byte_are_the_commands(command: str) -> None:
    name, *level = command.split()
    if not shutil.which(name):
        pytest.skip(f"no {name} on this machine")
    output = subprocess.run([name, *level, "-c"], input=TEXT, capture_output=True, check=True).stdout
    # Other implementations of the same formats: close, not equal.
    assert compress(TEXT)[name] == pytest.approx(8 * len(output) / len(TEXT), rel=0.01)


def test_noise_does_not_compress() -> None:
    bits = compress(random.Random(1).randbytes(100_000))
    assert all(8.0 < rate < 8.1 for rate in bits.values())


def test_text_of_windows_is_their_targets(tokenizer: Tokenizer) -> None:
    texts = ["the hat", "日本 and the cat 🙂"]
    first, second = (tokenizer.encode(text) for text in texts)
    end = tokenizer.end_of_text
    stream = np.array([end, *first, end, *second], dtype=np.int64)
    windows = [stream[start : start + 5] for start in range(0, len(stream) - 1, 4)]  # each overlaps the next by one
    assert read_text(windows, tokenizer) == "".join(texts).encode()
    assert read_text([], tokenizer) == b""
