"""Accuracy of a model on multiple-choice benchmarks, with standard errors."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from lmcore.errors import DataError
from lmcore.evaluate.benchmark_formats import Item, read_items
from lmcore.evaluate.benchmarks import BenchmarkFile
from lmcore.evaluate.loglikelihood import Pair, Score, encode_pair, score_pairs
from lmcore.model.gpt import GPT
from lmcore.model.vocabulary import require_vocabulary
from lmcore.runtime.progress import PLAIN_LINE_SECONDS, say
from lmcore.tokenizer.base import Tokenizer

DELIMITER = " "  # between the context and a choice
ITEMS_AT_ONCE = 1024  # in memory; among them those of one length find each other
PAIRS_AT_ONCE = 32  # through the model
DECIMALS = 6
LARGEST_LOSS = 700  # in nats; what e to it would be is no number any more


def measure_benchmark(
    model: GPT, tokenizer: Tokenizer, benchmark: BenchmarkFile, max_items: int | None, batch_size: int = PAIRS_AT_ONCE
) -> dict[str, Any]:
    """Return the metrics of one benchmark, of its first `max_items` items or of all.

    `accuracy`: how often the likeliest choice is the right one; `accuracy_normalised`: the one that is likeliest per
    character, which is lm-evaluation-harness's acc_norm. Of items with one choice: `accuracy`, how often greedy
    decoding writes it, its `loss` in nats and its `perplexity`. Each share and the perplexity have a standard error,
    `NAME_stderr`. `skipped` counts, by the reason, items that cannot be measured. Raises DataError for a file without
    suitable items, ArtifactError for another's tokenizer.
    """
    require_vocabulary(model, tokenizer)
    scored = BenchmarkScores()
    started = last_line = time.monotonic()
    for some in _batch(islice(read_items(benchmark.path, benchmark.formats), max_items), ITEMS_AT_ONCE):
        if len({len(item.choices) > 1 for item in some} | scored.kinds) > 1:
            raise DataError(f"{benchmark.path} has items with one choice and items with several: give two files")
        pairs = [encode_item(tokenizer, item) for item in some]
        obstacles = [find_obstacle(choices, model.params.context_length) for choices in pairs]
        scored.skipped.update(obstacle for obstacle in obstacles if obstacle)
        kept = [at for at, obstacle in enumerate(obstacles) if obstacle is None]
        for at, scores in zip(kept, score_pairs(model, [pairs[at] for at in kept], batch_size), strict=True):
            scored.add(some[at], scores)
        if (now := time.monotonic()) - last_line >= PLAIN_LINE_SECONDS:
            last_line = now
            say(f"{benchmark.name}: {scored.items:,} items, {scored.items / (now - started):,.1f} items/s")
    if not scored.items:
        reasons = ", ".join(f"{count:,}: {reason}" for reason, count in scored.skipped.items())
        raise DataError(f"{benchmark.path}: none of its items can be measured ({reasons}): give another file")
    return {**scored.describe(), "sha256": benchmark.sha256}


def encode_item(tokenizer: Tokenizer, item: Item) -> list[Pair]:
    """Return the context with each choice, as tokens."""
    return [encode_pair(tokenizer, item.context, DELIMITER + choice) for choice in item.choices]


def find_obstacle(pairs: Sequence[Pair], context_length: int) -> str | None:
    """Return the reason for which an item cannot be measured, None without one."""
    if any(not pair.continuation for pair in pairs):
        return "choice_without_token"
    if any(len(pair.continuation) > context_length for pair in pairs):
        return "choice_too_long"
    return None


def measure_benchmarks(
    model: GPT, tokenizer: Tokenizer, benchmarks: Sequence[BenchmarkFile], max_items: int | None
) -> dict[str, Any]:
    """Return the metric `suites`, `measure_benchmark` of each by its name; nothing without any."""
    figures = {benchmark.name: measure_benchmark(model, tokenizer, benchmark, max_items) for benchmark in benchmarks}
    return {"suites": figures} if figures else {}


class BenchmarkScores:
    """Sums the scores of items to metrics."""

    def __init__(self) -> None:
        self.kinds: set[bool] = set()  # True for items with several choices
        self.skipped: Counter[str] = Counter()
        self.items = self.right = self.right_normalised = 0
        self.nats, self.squared_nats = 0.0, 0.0  # of the right choices

    def add(self, item: Item, scores: Sequence[Score]) -> None:
        """Add an item with the score of each of its choices."""
        self.items += 1
        self.kinds.add(len(scores) > 1)
        if len(scores) == 1:
            self.right += scores[0].greedy
            self.nats -= scores[0].loglikelihood
            self.squared_nats += scores[0].loglikelihood ** 2
            return
        loglikelihoods = np.array([score.loglikelihood for score in scores])
        lengths = np.array([len(choice) for choice in item.choices], dtype=float)
        with np.errstate(divide="ignore"):  # nothing is the least likely per character
            normalised = loglikelihoods / lengths
        # Of equal ones the first, as by lm-evaluation-harness.
        self.right += int(loglikelihoods.argmax()) == item.gold
        self.right_normalised += int(normalised.argmax()) == item.gold

    def describe(self) -> dict[str, Any]:
        """Return the metrics."""
        figures: dict[str, Any] = {"items": self.items, "skipped": dict(sorted(self.skipped.items()))}
        figures |= _describe_share("accuracy", self.right, self.items)
        if self.kinds == {True}:
            return figures | _describe_share("accuracy_normalised", self.right_normalised, self.items)
        mean = self.nats / self.items
        figures["loss"] = round(mean, DECIMALS)
        if mean > LARGEST_LOSS:
            return figures
        perplexity = math.exp(mean)
        figures["perplexity"] = round(perplexity, DECIMALS)
        if self.items > 1:
            # By the delta method; lm-evaluation-harness draws samples, which comes to the same.
            variance = max(0.0, self.squared_nats / self.items - mean**2) / (self.items - 1)
            figures["perplexity_stderr"] = round(perplexity * math.sqrt(variance), DECIMALS)
        return figures


def _describe_share(name: str, right: int, items: int) -> dict[str, float]:
    """A share with its standard error, that of a mean of zeros and ones (divided by n - 1); one item has none."""
    share = right / items
    error = {f"{name}_stderr": round(math.sqrt(share * (1 - share) / (items - 1)), DECIMALS)} if items > 1 else {}
    return {name: share, **error}


def _batch(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    items = iter(items)
    while some := list(islice(items, size)):
        yield some
