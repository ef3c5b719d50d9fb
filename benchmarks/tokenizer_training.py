"""Training a byte-level BPE: lmcore beside Hugging Face tokenizers used in the ordinary way, on the same texts.

    python -m benchmarks.tokenizer_training                                       # 32,768 entries on 100 MB
    python -m benchmarks.tokenizer_training --megabytes 5 --entries 2048 --rounds 1

The text is the source of the running Python's standard library, its lines shuffled and repeated. Each training is a
process of its own; all alternate in one run, so that the machine's mood is shared. Ratios are of medians, of seconds
and of the processors' seconds, which other processes disturb less; the aim is to be at least as fast as tokenizers.
"""

import argparse
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from benchmarks.encode import read_library
from lmcore.hardware.measure import peak_memory_bytes
from lmcore.tokenizer.bpe import PATTERN, BpeTokenizer, fit_bpe

BATCH = 64  # texts
TEXT_LINES = 500

Batches = list[list[str]]


def shuffle_lines(megabytes: int) -> Iterator[str]:
    """About so many megabytes of text, the same every time: all lines of the library in another order each time."""
    lines = [line for text in read_library() for line in text.splitlines(keepends=True)]
    source, wanted = random.Random(1), megabytes * 1_000_000
    while True:
        source.shuffle(lines)
        for start in range(0, len(lines), TEXT_LINES):
            text = "".join(lines[start : start + TEXT_LINES])
            wanted -= len(text.encode())
            yield text
            if wanted <= 0:
                return


def train_as_gpt2(batches: Batches, entries: int) -> None:
    """As Hugging Face's course trains GPT-2's: pieces are cut by ByteLevel itself."""
    fit(pre_tokenizers.ByteLevel(add_prefix_space=False), batches, entries)


def train_by_pattern(batches: Batches, entries: int) -> None:
    """The same with our pattern."""
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fit(pre_tokenizers.Sequence([split, byte_level]), batches, entries)


def fit(pre_tokenizer: pre_tokenizers.PreTokenizer, batches: Batches, entries: int) -> None:
    """Train on one text after the other."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=entries, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator((text for batch in batches for text in batch), trainer)


SIDES: dict[str, Callable[[Batches, int], object]] = {
    "tokenizers": train_by_pattern,
    "tokenizers, GPT-2's pattern": train_as_gpt2,
    "lmcore, fit_bpe": fit_bpe,
    "lmcore, to tokenizer.json": BpeTokenizer.train,
}


def measure(side: str, megabytes: int, entries: int) -> tuple[float, float, int]:
    """Seconds of one training, its processors' seconds, and the most bytes its process held, the text included."""
    texts = list(shuffle_lines(megabytes))
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    started, processors = time.perf_counter(), time.process_time()
    SIDES[side](batches, entries)
    return time.perf_counter() - started, time.process_time() - processors, peak_memory_bytes()


def main() -> None:
    """Print one row per contestant: medians of the rounds, their ratios to tokenizers, and the most memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--entries", type=int, default=32_768)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    answers: dict[str, list[tuple[float, float, int]]] = {name: [] for name in SIDES}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for _ in range(arguments.rounds):
            for name in SIDES:
                answers[name].append(pool.submit(measure, name, arguments.megabytes, arguments.entries).result())
    medians = {
        name: [statistics.median(column) for column in zip(*some, strict=True)] for name, some in answers.items()
    }
    print(f"{arguments.megabytes} MB, {arguments.entries:,} entries, {arguments.rounds} rounds")
    print(f"{'':30}{'seconds':>10}{'ratio':>8}{'of processors':>16}{'ratio':>8}{'peak MB':>10}")
    wanted, spent, _ = medians["tokenizers"]
    for name, (seconds, processors, _) in medians.items():
        peak = max(answer[2] for answer in answers[name]) / 1e6
        ratios = f"{seconds:10.2f}{wanted / seconds:8.2f}{processors:16.2f}{spent / processors:8.2f}"
        print(f"{name:30}{ratios}{peak:10.0f}")


if __name__ == "__main__":
    main()
