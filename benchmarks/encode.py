"""Encoding of documents to shards on disk, beside bare tiktoken and tokenizers, on one core.

    python -m benchmarks.encode

All take turns in one run, on the same texts. Ratios are of medians; the aims are at least 0.8 of bare tiktoken and
4 times Hugging Face tokenizers, which reads the same tokenizer.json.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import tiktoken
import tokenizers

from benchmarks.corpus import encode_texts, read_library
from benchmarks.timing import alternate, measure_seconds
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokenizer.bpe import BpeTokenizer

VOCAB_SIZE = 4096
BATCH = 64  # documents that the stage reads at once


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
        encode_texts({"train": batches}, tokenizer, Path(folder), shard_tokens=1_000_000)


def main(argv: Sequence[str] | None = None) -> None:
    """Print one row per contestant: MB/s, best and median of the rounds, and the ratios to both libraries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, help="of the library; by default all")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    texts = read_library()[: options.files]
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
    seconds = alternate({name: partial(measure_seconds, call) for name, call in contestants.items()}, options.rounds)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{len(texts)} files, {megabytes:.1f} MB, {tokenizer.vocab_size} entries, one core, {options.rounds} rounds")
    print(f"{'':20}{'best MB/s':>12}{'median MB/s':>12}{'/ tiktoken':>12}{'/ tokenizers':>14}")
    for name, median in medians.items():
        ratios = f"{medians['bare tiktoken'] / median:12.2f}{medians['tokenizers'] / median:14.2f}"
        print(f"{name:20}{megabytes / min(seconds[name]):12.1f}{megabytes / median:12.1f}{ratios}")


if __name__ == "__main__":
    main()
