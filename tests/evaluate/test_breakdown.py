"""The parts of a loss sum to the whole, and its interval holds the truth as often as it says."""

import csv
import io
import math
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import GPT2_MODEL, Texts, make_texts, tokenizer_params

from lmcore.encode.encode import encode_splits
from lmcore.encode.params import EncodeParams
from lmcore.evaluate.breakdown import MIN_DOCUMENTS, Breakdown, cut_positions, find_interval
from lmcore.evaluate.loss import Loss, measure_loss
from lmcore.model.gpt import GPT
from lmcore.tokens.shards import TokenShards
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

CONTEXT_LENGTH = GPT2_MODEL.context_length
BYTES = train_tokenizer(tokenizer_params("byte"), [])
TEXTS = {"prose": make_texts(30, 3), "näive": [f"{text}日本\n" for text in make_texts(22, 4)], "rest": ["one", "two"]}


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(GPT2_MODEL.model_copy(update={"tie_embeddings": False}), BYTES.vocab_size).eval()
    with torch.no_grad():
        model.head.weight.mul_(30)
    return model


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    """Documents of three sources."""
    folder = tmp_path_factory.mktemp("sources")
    parts = {"train": [Texts([["x"]])], "validation": [Texts([texts], name) for name, texts in TEXTS.items()]}
    with tempfile.TemporaryDirectory() as scratch:
        params = EncodeParams(shard_tokens=1000, tokenized=None)
        encode_splits(params, parts, BYTES, folder / "tokens", scratch=Path(scratch))
    return TokenShards.open(folder / "tokens", "validation")


def measure(model: GPT, shards: TokenShards, windows: int | None, batch_size: int) -> tuple[Loss, Breakdown]:
    breakdown = Breakdown(shards, BYTES.byte_lengths, CONTEXT_LENGTH, windows)
    return measure_loss(model, shards, BYTES.byte_lengths, windows, batch_size, breakdown.observe), breakdown


@pytest.mark.parametrize("windows", [None, 1, 37])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_parts_sum_to_the_whole(model: GPT, shards: TokenShards, windows: int | None, batch_size: int) -> None:
    loss, breakdown = measure(model, shards, windows, batch_size)
    for parts in (breakdown.nats, breakdown.position_nats):
        assert parts.sum() == pytest.approx(loss.nats, rel=1e-12)
    for counts in (breakdown.tokens, breakdown.position_tokens):
        assert counts.sum() == loss.tokens
    assert breakdown.bytes.sum() == loss.bytes


def test_every_token_is_its_documents(model: GPT, shards: TokenShards) -> None:
    """Bytes are those of the text; nats those of cross-entropy, document by document."""
    _, breakdown = measure(model, shards, None, 8)
    texts = [text for texts in TEXTS.values() for text in texts]
    assert breakdown.bytes.tolist() == [len(text.encode()) for text in texts]
    stream = torch.from_numpy(shards.read(0, len(shards)))
    expected = []
    for start in range(0, shards.tokens, CONTEXT_LENGTH):
        window = stream[None, start : start + CONTEXT_LENGTH + 1]
        with torch.no_grad():
            expected += F.cross_entropy(model(window[:, :-1])[0][0].double(), window[0, 1:], reduction="none").tolist()
    opens = [*shards.documents.tolist(), len(shards)]
    for document, (begin, end) in enumerate(pairwise(opens)):
        # Target i of the stream is token i + 1, and the end-of-text that opens a document belongs to it.
        own = expected[max(0, begin - 1) : end - 1]
        assert breakdown.nats[document] == pytest.approx(sum(own), rel=1e-6), document


def test_sources_have_their_own_figures(model: GPT, shards: TokenShards) -> None:
    loss, breakdown = measure(model, shards, None, 8)
    figures = breakdown.describe()
    sources = figures["sources"]
    assert list(sources) == list(TEXTS)
    for name, texts in TEXTS.items():
        assert sources[name]["bytes"] == sum(len(text.encode()) for text in texts)
    nats = sum(source["val_loss"] * source["tokens"] for source in sources.values())
    assert nats / loss.tokens == pytest.approx(loss.loss, abs=1e-6)
    assert figures["confidence_95"]["documents"] == sum(map(len, TEXTS.values()))
    assert sources["prose"]["confidence_95"]["documents"] == len(TEXTS["prose"])
    assert "confidence_95" not in sources["rest"], "two documents say nothing of others"
    for part, whole in ((figures, loss.bits_per_byte), (sources["prose"], sources["prose"]["bits_per_byte"])):
        interval = part["confidence_95"]["bits_per_byte"]
        assert interval["low"] < whole < interval["high"]


def test_a_source_that_no_window_touched_has_no_loss(model: GPT, shards: TokenShards) -> None:
    _, breakdown = measure(model, shards, 1, 8)
    figures = breakdown.describe()
    assert figures["sources"]["rest"] == {"tokens": 0, "bytes": 0}
    assert "confidence_95" not in figures


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Documents of very different lengths and difficulties, drawn 2,000 times: 95 % of the intervals hold the ratio.

    Taking tokens for independent would hold it far less often, as the tokens of one document are alike.
    """
    source = np.random.default_rng(1)
    held = alike = 0
    for _ in range(2_000):
        sizes = source.integers(50, 2_000, 100)
        costs = sizes * source.normal(2.0, 0.3, 100)
        low, high = find_interval(costs, sizes)
        held += low < 2.0 < high
        margin = 1.96 * 0.3 / math.sqrt(sizes.sum())
        alike += abs(costs.sum() / sizes.sum() - 2.0) < margin
    assert 0.93 < held / 2_000 < 0.965
    assert alike / 2_000 < 0.5


def test_the_interval_is_that_of_the_mean_for_equal_sizes() -> None:
    costs, sizes = np.array([1.0, 2.0, 3.0, 6.0] * 5), np.ones(20)
    low, high = find_interval(costs, sizes)
    assert (low + high) / 2 == pytest.approx(costs.mean())
    assert high - low == pytest.approx(2 * 1.959964 * costs.std(ddof=1) / math.sqrt(20))
    assert len(costs) >= MIN_DOCUMENTS


def test_loss_by_position(model: GPT, shards: TokenShards) -> None:
    _, breakdown = measure(model, shards, None, 8)
    rows = list(csv.DictReader(io.StringIO(breakdown.tabulate_positions())))
    assert [int(row["position"]) for row in rows] == [1, 2, 3, 4, 6, 8, 12, 16]
    assert sum(int(row["tokens"]) for row in rows) == shards.tokens
    first = [int(shards.read(start, 2)[1]) for start in range(0, shards.tokens, CONTEXT_LENGTH)]
    context = [int(shards.read(start, 1)[0]) for start in range(0, shards.tokens, CONTEXT_LENGTH)]
    with torch.no_grad():
        logits = model(torch.tensor(context)[:, None])[0][:, 0]
    assert float(rows[0]["loss"]) == pytest.approx(F.cross_entropy(logits, torch.tensor(first)).item(), abs=1e-5)


@pytest.mark.parametrize("context_length", [2, 3, 16, 100, 256, 1024])
def test_positions_are_cut_without_gaps(context_length: int) -> None:
    ends = cut_positions(context_length)
    assert ends[0] == 0
    assert ends[-1] == context_length
    assert ends == sorted(set(ends))
    assert len(ends) <= 2 * math.log2(context_length) + 3
