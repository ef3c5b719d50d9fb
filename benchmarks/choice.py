"""Multiple-choice items per second beside lm-evaluation-harness's `hf` model, on the same exported weights.

    python -m benchmarks.choice --items hellaswag_val.jsonl --tokenizer models/gpt2            # GPT-2's shape and 10M
    python -m benchmarks.choice --items hellaswag_val.jsonl --tokenizer models/gpt2 --shapes 10m --count 200

Random weights, one vocabulary, one file of items, the same number of pairs at once. Both sides take turns in one
process, each from texts to accuracies; the ratio is of medians, the aim at least 1. The accuracies, raw and normalised,
must be the same to 1e-9, which is checked first. Needs the extra `eval`.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.steps import SHAPES, gpt2_params
from benchmarks.timing import alternate, measure_seconds
from lmcore.evaluate.benchmark_formats import HELLASWAG, Item, read_items
from lmcore.evaluate.benchmarks import BenchmarkFile
from lmcore.evaluate.multiple_choice import DELIMITER, measure_benchmark
from lmcore.export.hugging_face import write_hugging_face
from lmcore.model.gpt import GPT
from lmcore.model.save_load import load_model
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokenizer.load import load_tokenizer

try:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
except ImportError:
    sys.exit("benchmarks.choice needs lm-evaluation-harness: pip install -e '.[eval]'")

SPREAD = 3.0  # times the initial weights: a model that has opinions, so that no two choices are equally likely


def main(argv: Sequence[str] | None = None) -> None:
    """Print one row per shape: items per second of both, their ratio, and the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=Path, required=True, help="a .jsonl file in HellaSwag's form")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with a tokenizer, as GPT-2's")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["10m", "124m"])
    parser.add_argument("--count", type=int, default=100, help="items, the first")
    parser.add_argument("--batch-size", type=int, default=32, help="pairs at once, of both")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer = load_tokenizer(options.tokenizer)
    items = list(islice(read_items(options.items, [HELLASWAG]), options.count))
    print(f"{len(items)} items, {options.batch_size} pairs at once, {torch.get_num_threads()} threads, medians")
    print(f"{'':6}{'hf items/s':>12}{'lmcore items/s':>16}{'ratio':>7}   accuracies, equal to 1e-9")
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            export(shape, tokenizer, Path(folder))
            compare(shape, Path(folder), tokenizer, items, options)


def export(shape: str, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a model of GPT-2's blocks as a Hugging Face folder."""
    context = 1024 if shape == "124m" else 256
    model = GPT(gpt2_params(shape, context_length=context, bias=True), tokenizer.vocab_size)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(SPREAD)
    write_hugging_face(model, "gpt2", "float32", tokenizer, folder)


def compare(shape: str, folder: Path, tokenizer: Tokenizer, items: list[Item], options: argparse.Namespace) -> None:
    """Check that both sides agree, time them in turns and print one row."""
    theirs = HFLM(str(folder), backend="causal", device="cpu", batch_size=options.batch_size, dtype="float32")
    ours, file = load_model(folder), BenchmarkFile("hellaswag", options.items, "")
    sides = {
        "hf": partial(measure_theirs, theirs, items),
        "lmcore": partial(measure_benchmark, ours, tokenizer, file, len(items), options.batch_size),
    }
    expected, found = (side() for side in sides.values())
    for name, value in expected.items():
        assert abs(found[name] - value) < 1e-9, (name, found[name], value)
    seconds = alternate({name: partial(measure_seconds, side) for name, side in sides.items()}, options.rounds)
    rates = {name: len(items) / statistics.median(times) for name, times in seconds.items()}
    shown = ", ".join(f"{name} {value:.4f}" for name, value in expected.items())
    print(f"{shape:6}{rates['hf']:12.2f}{rates['lmcore']:16.2f}{rates['lmcore'] / rates['hf']:7.2f}   {shown}")


def measure_theirs(model: Any, items: list[Item]) -> dict[str, float]:
    """Return accuracies as its multiple-choice tasks do: from the log-likelihood of every choice."""
    pairs = [(item.context, DELIMITER + choice) for item in items for choice in item.choices]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    answers = iter(model.loglikelihood(requests, disable_tqdm=True))
    right, right_normalised = [], []
    for item in items:
        scores = np.array([next(answers)[0] for _ in item.choices])
        lengths = np.array([len(choice) for choice in item.choices])
        right.append(scores.argmax() == item.gold)
        right_normalised.append((scores / lengths).argmax() == item.gold)
    return {"accuracy": float(np.mean(right)), "accuracy_normalised": float(np.mean(right_normalised))}


if __name__ == "__main__":
    main()
