"""Encoding speed: documents to shards on disk, beside bare tiktoken and tokenizers on the same texts, on one core.

    python -m benchmarks.encode

All alternate in one run, so that the machine's mood is shared. Ratios are of medians; the aims are at least 0.8 of bare
tiktoken and 4 times Hugging Face tokenizers, which reads the same tokenizer.json.
"""

import argparse
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tiktoken
import tokenizers

from lmcore.encode.encode import encode_splits
from lmcore.encode.params import EncodeParams
from lmcore.files import fingerprint
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokenizer.bpe import BpeTokenizer

ROUNDS = 7
VOCAB_SIZE = 4096
BATCH = 64  # documents that the stage reads at once


@dataclass(frozen=True)
class Texts:
    """A part of a split that is in memory."""

    batches: list[list[str]]
    source: str = "text"
    size: int = 0

    def fingerprint(self) -> str:
        """SHA-256 of the texts."""
        return fingerprint(self.batches)

    def read(self) -> Iterator[list[str]]:
        """The batches."""
        return iter(self.batches)


def read_library() -> list[str]:
    """The source files of the running Python's standard library, without packages installed beside it."""
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    kept = [file for file in files if not {"site-packages", "test", "tests", "encodings"} & set(file.parts)]
    return [file.read_text(encoding="utf-8", errors="replace") for file in kept]


def build_bare(tokenizer: BpeTokenizer) -> tiktoken.Encoding:
    """The encoder as one would use it without this project, with the same ranks."""
    ranks = {tokenizer.token_bytes(rank): rank for rank in range(tokenizer.end_of_text)}
    return tiktoken.Encoding("bare", pat_str=tokenizer.pattern, mergeable_ranks=ranks, special_tokens={})


def build_reference(tokenizer: BpeTokenizer) -> tokenizers.Tokenizer:
    """The artefact in Hugging Face's library, with no text taken for a special token, as in ours."""
    reference = tokenizers.Tokenizer.from_buffer(tokenizer.artefact)
    reference.encode_special_tokens = True
    return reference


def write_shards(tokenizer: Tokenizer, texts: list[str]) -> None:
    """All that the encode stage does after reading: ids, counts, shards, checksums, manifest."""
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    with tempfile.TemporaryDirectory() as folder:
        parts, place = {"train": [Texts(batches)]}, Path(folder)
        encode_splits(
            EncodeParams(shard_tokens=1_000_000, tokenized=None),
            parts,
            tokenizer,
            place / "tokens",
            scratch=place / "parts",
        )


def measure(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print one row per contestant: MB/s, best and median of the rounds, and the ratios to both libraries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds: int = parser.parse_args().rounds
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    texts = read_library()
    tokenizer = BpeTokenizer.train([texts], VOCAB_SIZE)
    bare, reference = build_bare(tokenizer), build_reference(tokenizer)
    assert [encoding.ids for encoding in reference.encode_batch(texts[:50])] == [*map(tokenizer.encode, texts[:50])]
    contestants: dict[str, Callable[[], object]] = {
        "tokenizers": lambda: reference.encode_batch(texts),
        "tokenizers, fast": lambda: reference.encode_batch_fast(texts),  # without the tokens' places in the text
        "bare tiktoken": lambda: [bare.encode_ordinary(text) for text in texts],
        "lmcore, to arrays": lambda: tokenizer.encode_batch(texts),
        "lmcore, to shards": lambda: write_shards(tokenizer, texts),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            seconds[name].append(measure(call))
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{len(texts)} files, {megabytes:.1f} MB, {tokenizer.vocab_size} entries, one core, {rounds} rounds")
    print(f"{'':20}{'best MB/s':>12}{'median MB/s':>12}{'/ tiktoken':>12}{'/ tokenizers':>14}")
    for name, median in medians.items():
        ratios = f"{medians['bare tiktoken'] / median:12.2f}{medians['tokenizers'] / median:14.2f}"
        print(f"{name:20}{megabytes / min(seconds[name]):12.1f}{megabytes / median:12.1f}{ratios}")


if __name__ == "__main__":
    main()
