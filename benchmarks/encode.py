"""Encoding speed: documents to shards on disk, beside bare tiktoken on the same texts, on one core.

    python -m benchmarks.encode

Both alternate in one run, so that the machine's mood is shared. The ratio is of medians; the aim is at least 0.8.
"""

import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tiktoken

from lmcore.tokenizer.base import Tokenizer
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokens.encode import EncodeParams, Texts, encode_splits

ROUNDS = 7
VOCAB_SIZE = 4096
BATCH = 64  # documents that the stage reads at once


def read_library() -> list[str]:
    """The source files of the running Python's standard library, without packages installed beside it."""
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    kept = [file for file in files if not {"site-packages", "test", "tests", "encodings"} & set(file.parts)]
    return [file.read_text(encoding="utf-8", errors="replace") for file in kept]


def build_bare(tokenizer: BpeTokenizer) -> tiktoken.Encoding:
    """The encoder as one would use it without this project, with the same ranks."""
    ranks = {tokenizer.token_bytes(rank): rank for rank in range(tokenizer.end_of_text)}
    return tiktoken.Encoding("bare", pat_str=tokenizer.pattern, mergeable_ranks=ranks, special_tokens={})


def write_shards(tokenizer: Tokenizer, texts: list[str]) -> None:
    """All that the encode stage does after reading: ids, counts, shards, checksums, manifest."""
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    with tempfile.TemporaryDirectory() as folder:
        parts, place = {"train": [Texts(batches)]}, Path(folder)
        encode_splits(EncodeParams(shard_tokens=1_000_000), parts, tokenizer, place / "tokens", scratch=place / "parts")


def measure(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print one row per contestant: MB/s, best and median of the rounds, and the ratio to bare tiktoken."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    texts = read_library()
    tokenizer = BpeTokenizer.train([texts], VOCAB_SIZE)
    bare = build_bare(tokenizer)
    contestants: dict[str, Callable[[], object]] = {
        "bare tiktoken": lambda: [bare.encode_ordinary(text) for text in texts],
        "lmcore, to arrays": lambda: tokenizer.encode_batch(texts),
        "lmcore, to shards": lambda: write_shards(tokenizer, texts),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, call in contestants.items():
            seconds[name].append(measure(call))
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    reference = statistics.median(seconds["bare tiktoken"])
    print(f"{len(texts)} files, {megabytes:.1f} MB, {tokenizer.vocab_size} entries, one core, {ROUNDS} rounds")
    print(f"{'':20}{'best MB/s':>12}{'median MB/s':>12}{'ratio':>8}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:20}{megabytes / min(times):12.1f}{megabytes / median:12.1f}{reference / median:8.2f}")


if __name__ == "__main__":
    main()
