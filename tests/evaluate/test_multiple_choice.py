"""Accuracies and their errors, from scores that are known, and of a model on a file."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import GPT2_MODEL, make_texts, tokenizer_params

from lmcore.errors import ArtifactError, DataError
from lmcore.evaluate import multiple_choice as choice
from lmcore.evaluate.benchmark_formats import Item
from lmcore.evaluate.benchmarks import BenchmarkFile
from lmcore.evaluate.loglikelihood import Score
from lmcore.evaluate.multiple_choice import BenchmarkScores, measure_benchmark
from lmcore.files import sha256_file
from lmcore.model.gpt import GPT
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

BYTES = train_tokenizer(tokenizer_params("byte"), [])
MODEL = GPT(GPT2_MODEL, BYTES.vocab_size).eval()
with torch.no_grad():
    for weight in MODEL.parameters():
        weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))


def write(path: Path, *records: dict[str, Any]) -> BenchmarkFile:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return BenchmarkFile(path.stem, path, sha256_file(path))


def make_records(count: int) -> list[dict[str, Any]]:
    texts = iter(make_texts(5 * count, 9))
    return [
        {"context": next(texts)[: 4 + at], "choices": [next(texts)[: 3 + at % 5 + i] for i in range(4)], "gold": at % 4}
        for at in range(count)
    ]


def test_accuracies_of_known_scores() -> None:
    """Raw takes the likeliest, normalised the likeliest per character; of equal ones the first."""
    tally = BenchmarkScores()
    item = Item("a", ["bb", "bbbbbbbb", "b"], 0)
    rows = [([-2, -4, -9], 0), ([-2, -4, -9], 1), ([-3, -3, -3], 0), ([-5, -5, -2], 2)]
    for loglikelihoods, gold in rows:
        tally.add(Item("a", item.choices, gold), [Score(float(value), False) for value in loglikelihoods])
    found = tally.describe()
    assert (found["items"], found["accuracy"], found["accuracy_normalised"]) == (4, 3 / 4, 1 / 4)
    # lm-evaluation-harness's mean_stderr: the sample's standard deviation over the root of n.
    right = [1, 0, 1, 1]
    deviation = math.sqrt(sum((value - 0.75) ** 2 for value in right) / 3)
    assert found["accuracy_stderr"] == pytest.approx(deviation / 2, abs=1e-6)


def test_an_empty_choice_is_never_the_likeliest_per_character() -> None:
    tally = BenchmarkScores()
    tally.add(Item("a", ["", "bb"], 1), [Score(-1.0, False), Score(-50.0, False)])
    assert tally.describe() == {"items": 1, "skipped": {}, "accuracy": 0.0, "accuracy_normalised": 1.0}


def test_perplexity_of_known_scores() -> None:
    tally = BenchmarkScores()
    scores = [Score(-1.0, True), Score(-2.0, False), Score(-6.0, False)]
    for score in scores:
        tally.add(Item("a", ["b"], 0), [score])
    found = tally.describe()
    assert found["accuracy"] == 1 / 3
    assert found["perplexity"] == pytest.approx(math.exp(3.0), abs=1e-6)
    assert found["perplexity_stderr"] == pytest.approx(math.exp(3.0) * math.sqrt(7 / 3), abs=1e-6)  # variance 7 of 3
    assert "accuracy_normalised" not in found


def test_a_file_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batches, and a part of it is its beginning."""
    suite = write(tmp_path / "own.jsonl", *make_records(30))
    found = measure_benchmark(MODEL, BYTES, suite, None)
    assert found["items"] == 30
    assert found["sha256"] == suite.sha256
    monkeypatch.setattr(choice, "ITEMS_AT_ONCE", 7)
    assert measure_benchmark(MODEL, BYTES, suite, None, batch_size=3) == found
    part = write(tmp_path / "part.jsonl", *make_records(30)[:11])
    expected = {**measure_benchmark(MODEL, BYTES, part, None), "sha256": suite.sha256}
    assert measure_benchmark(MODEL, BYTES, suite, 11) == expected


def test_what_cannot_be_measured_is_counted(tmp_path: Path) -> None:
    long = {"context": "a", "choices": ["b" * GPT2_MODEL.context_length, "b"], "gold": 0}
    found = measure_benchmark(MODEL, BYTES, write(tmp_path / "own.jsonl", *make_records(3), long), None)
    assert found["items"] == 3
    assert found["skipped"] == {"choice_too_long": 1}
    with pytest.raises(DataError, match=r"own.jsonl: none of its items can be measured \(2: choice_too_long"):
        measure_benchmark(MODEL, BYTES, write(tmp_path / "own.jsonl", long, long), None)


def test_two_kinds_in_one_file_are_refused(tmp_path: Path) -> None:
    suite = write(tmp_path / "own.jsonl", *make_records(3), {"text": "one two"})
    with pytest.raises(DataError, match=r"has items with one choice and items with several: give two files"):
        measure_benchmark(MODEL, BYTES, suite, None)


def test_anothers_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"vocabulary has 200 tokens, its tokenizer's 257"):
        measure_benchmark(GPT(GPT2_MODEL, 200).eval(), BYTES, write(tmp_path / "own.jsonl", *make_records(3)), None)
