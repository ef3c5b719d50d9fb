"""Batches: tokens per second from a warm memory map, and the first batch of ten billion tokens, in one process.

    python -m benchmarks.batches

The aims: 50 million tokens per second at every shape, the first batch within 0.2 s, memory that does not grow with the
text. The ten billion tokens are sparse files: their manifest, their sizes and their table of documents are real.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.tokens.batches import Batches
from lmcore.tokens.shards import MANIFEST, TokenShards

SHAPES = ((4, 256), (16, 256), (8, 1024), (64, 1024), (480, 1024))
WAYS: dict[str, dict[str, Any]] = {
    "stream": {},
    "document": {"packing": "document"},
    "mixture": {"mixture": {"one": 0.7, "two": 0.3}},
}
SECONDS = 1.0
ROUNDS = 5
VOCAB_SIZE, END_OF_TEXT = 50_257, 50_256
DOCUMENT = 800  # tokens of each, on average


def write_shards(folder: Path, tokens: int, shard_tokens: int, *, sparse: bool) -> None:
    """A split `train` of two sources; `sparse` leaves the ids to be zeros that take no disk."""
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


def measure_speed(shards: TokenShards, batch_size: int, context_length: int, way: dict[str, Any]) -> float:
    """Tokens per second of `Batches.at`, the best round of several."""
    batches = Batches(shards, batch_size, context_length, seed=1, **way)
    steps = 0
    best = 0.0
    for _ in range(ROUNDS):
        first, start = steps, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < SECONDS / ROUNDS:
            batches.at(steps)
            steps += 1
        best = max(best, (steps - first) * batches.tokens_per_step / elapsed)
    return best


def measure_start(folder: Path, way: str) -> list[str]:
    """Of a fresh process: seconds to open, to the first batch, to a thousand batches; MB of memory of its own."""
    program = (
        "import sys, time, json, psutil; from pathlib import Path; from lmcore.tokens.batches import Batches\n"
        "from lmcore.tokens.shards import TokenShards\n"
        "process = psutil.Process(); own = lambda: process.memory_info().rss - process.memory_info().shared\n"
        "before, start = own(), time.perf_counter()\n"
        "shards = TokenShards.open(Path(sys.argv[1]), 'train'); opened = time.perf_counter() - start\n"
        "batches = Batches(shards, 16, 1024, 1, **json.loads(sys.argv[2]))\n"
        "batches.at(0); first = time.perf_counter() - start\n"
        "for step in range(1000): batches.at(step)\n"
        "print(f'{opened:.3f} {first:.3f} {time.perf_counter() - start:.2f} {(own() - before) / 1e6:.1f}')\n"
    )
    command = [sys.executable, "-c", program, str(folder), json.dumps(WAYS[way])]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def print_row(name: str, values: Sequence[str]) -> None:
    """Columns of ten."""
    print(f"{name:12}" + "".join(f"{value:>10}" for value in values), flush=True)


def main() -> None:
    """Two tables: the speeds, and the starts."""
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), 200_000_000, 10_000_000, sparse=False)
        shards = TokenShards.open(Path(folder), "train")
        shards.read_windows(list(range(0, 199_000_000, 1_000_000)), 1_000_000)  # warm
        print("million tokens per second of Batches.at, one process, 200 million tokens in memory")
        print_row("", [f"{batch}x{context}" for batch, context in SHAPES])
        for name, way in WAYS.items():
            print_row(name, [f"{measure_speed(shards, *shape, way) / 1e6:.0f}" for shape in SHAPES])
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), 10_000_000_000, 10_000_000, sparse=True)
        print("\n10 billion tokens in 1,000 shards, 16x1024: seconds until, and MB of a process of its own")
        print_row("", ["opened", "1st batch", "1,001st", "MB"])
        for name in WAYS:
            print_row(name, measure_start(Path(folder), name))


if __name__ == "__main__":
    main()
