"""Batches: tokens per second from a warm memory map, and the time to the first batch of ten billion tokens.

    python -m benchmarks.batches

The aims: 50 million tokens per second at every shape, the first batch within 0.2 s, memory that does not grow with the
text. The ten billion tokens are sparse files: their manifest, their sizes and their table of documents are real.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.timing import run_apart
from lmcore.tokens.batches import Batches
from lmcore.tokens.shards import MANIFEST, TokenShards

SHAPES = ((4, 256), (16, 256), (8, 1024), (64, 1024), (480, 1024))
WAYS: dict[str, dict[str, Any]] = {
    "stream": {},
    "document": {"packing": "document"},
    "mixture": {"mixture": {"one": 0.7, "two": 0.3}},
}
ROUNDS = 5
VOCAB_SIZE, END_OF_TEXT = 50_257, 50_256
DOCUMENT = 800  # tokens of each, on average


def write_shards(folder: Path, tokens: int, shard_tokens: int, *, sparse: bool) -> None:
    """Write a split `train` of two sources; the ids of `sparse` shards are zeros that take no disk space."""
    generator = np.random.default_rng(0)
    documents = np.cumsum(generator.integers(1, 2 * DOCUMENT, tokens // DOCUMENT), dtype=np.uint64)
    documents = np.concatenate([np.zeros(1, np.uint64), documents[documents < tokens - 1]])
    middle = len(documents) // 2
    np.save(folder / "train-documents.npy", documents)
    names = [f"train-{number:05d}.npy" for number in range(tokens // shard_tokens)]
    for name in names:
        shard = np.lib.format.open_memmap(folder / name, "w+", np.uint16, (shard_tokens,))
        if not sparse:
            shard[:] = generator.integers(0, VOCAB_SIZE, shard_tokens)
    sizes = (int(documents[middle]) - 1, tokens - int(documents[middle]) + 1)
    entry = {
        "tokens": tokens,
        "documents": len(documents),
        "bytes": tokens,
        "sources": [{"name": name, "tokens": size} for name, size in zip(("one", "two"), sizes, strict=True)],
        "document_offsets": {"file": "train-documents.npy", "sha256": ""},
        "shards": [{"file": name, "tokens": shard_tokens, "sha256": ""} for name in names],
    }
    manifest = {"dtype": "uint16", "vocab_size": VOCAB_SIZE, "end_of_text": END_OF_TEXT, "tokenizer": ""}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "splits": {"train": entry}}))


def measure_speed(
    shards: TokenShards, batch_size: int, context_length: int, way: dict[str, Any], seconds: float
) -> float:
    """Return the tokens per second of `Batches.at`, the best of ROUNDS, which take `seconds` together."""
    batches = Batches(shards, batch_size, context_length, seed=1, **way)
    steps = 0
    best = 0.0
    for _ in range(ROUNDS):
        first, start = steps, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds / ROUNDS:
            batches.at(steps)
            steps += 1
        best = max(best, (steps - first) * batches.tokens_per_step / elapsed)
    return best


def measure_start(folder: Path, way: str) -> list[str]:
    """Return the seconds to open, to the first batch and to the 1,001st, and the MB of memory that they took."""
    process = psutil.Process()

    def own() -> int:
        memory = process.memory_info()
        return int(memory.rss - memory.shared)

    before, start = own(), time.perf_counter()
    shards = TokenShards.open(folder, "train")
    opened = time.perf_counter() - start
    batches = Batches(shards, 16, 1024, 1, **WAYS[way])
    batches.at(0)
    first = time.perf_counter() - start
    for step in range(1000):
        batches.at(step)
    return [f"{opened:.3f}", f"{first:.3f}", f"{time.perf_counter() - start:.2f}", f"{(own() - before) / 1e6:.1f}"]


def print_row(name: str, values: Sequence[str]) -> None:
    """Print columns of ten characters."""
    print(f"{name:12}" + "".join(f"{value:>10}" for value in values), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Print two tables: the speeds, and the starts, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200_000_000, help="in memory")
    parser.add_argument("--sparse", type=int, default=10_000_000_000, help="tokens of the sparse files")
    parser.add_argument("--shard", type=int, default=10_000_000, help="tokens of a file")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement of speed")
    parser.add_argument("--start", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.start:
        print(json.dumps(measure_start(Path(options.start[0]), options.start[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), options.tokens, options.shard, sparse=False)
        shards = TokenShards.open(Path(folder), "train")
        piece = options.tokens // 200
        shards.read_windows(list(range(0, options.tokens - piece, piece)), piece)  # warm
        print(f"million tokens per second of Batches.at, one process, {options.tokens:,} tokens in memory")
        print_row("", [f"{batch}x{context}" for batch, context in SHAPES])
        for name, way in WAYS.items():
            speeds = [measure_speed(shards, *shape, way, options.seconds) for shape in SHAPES]
            print_row(name, [f"{speed / 1e6:.0f}" for speed in speeds])
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), options.sparse, options.shard, sparse=True)
        print(f"\n{options.sparse:,} tokens, 16x1024: seconds until, and MB of a process of its own")
        print_row("", ["opened", "1st batch", "1,001st", "MB"])
        for name in WAYS:
            print_row(name, run_apart("benchmarks.batches", "--start", folder, name))


if __name__ == "__main__":
    main()
