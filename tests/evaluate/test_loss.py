"""The loss against cross-entropy computed plainly, and what is derived from it."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import GPT2_MODEL, encode_texts, tokenizer_params

from lmcore.errors import ArtifactError, DataError, ParameterError
from lmcore.evaluate.loss import Loss, measure_loss
from lmcore.evaluate.params import EvaluateParams
from lmcore.model.gpt import GPT
from lmcore.params import parse_section
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokens.batches import fixed_windows
from lmcore.tokens.shards import TokenShards
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

CONTEXT_LENGTH = GPT2_MODEL.context_length
EVERYTHING = {"max_tokens": None, "suites": None, "max_items": None}
DOCUMENTS = ["the first document, näive and long enough for windows " * 3, "the second 日本"]


def build_model(vocab_size: int = 257) -> GPT:
    """A model that is unsure enough, and has dropout to leave out."""
    model = GPT(GPT2_MODEL.model_copy(update={"dropout": 0.5, "tie_embeddings": False}), vocab_size)
    with torch.no_grad():
        model.head.weight.mul_(30)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(tokenizer_params("byte"), [])


@pytest.fixture(scope="module")
def shards(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    folder = tmp_path_factory.mktemp("tokens")
    splits = {"train": [["a b"]], "validation": [DOCUMENTS]}
    encode_texts(50, splits, tokenizer, folder)
    return TokenShards.open(folder, "validation")


def naive_nats(model: GPT, windows: Iterator[np.ndarray]) -> list[float]:
    """Cross-entropy of every target, one window at a time, in float64."""
    with torch.no_grad():
        rows = [torch.from_numpy(window)[None] for window in windows]
        return [
            nats
            for row in rows
            for nats in F.cross_entropy(model(row[:, :-1])[0][0].double(), row[0, 1:], reduction="none").tolist()
        ]


@pytest.mark.parametrize("windows", [None, 1, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_loss_is_cross_entropy(shards: TokenShards, tokenizer: Tokenizer, windows: int | None, batch_size: int) -> None:
    model = build_model()
    nats = naive_nats(model, fixed_windows(shards, CONTEXT_LENGTH, windows))
    loss = measure_loss(model, shards, tokenizer.byte_lengths, windows, batch_size)
    assert loss.loss == pytest.approx(sum(nats) / len(nats), rel=1e-6)
    assert loss.tokens == len(nats) == (shards.tokens if windows is None else windows * CONTEXT_LENGTH)
    assert loss.perplexity == math.exp(loss.loss)


def test_the_whole_split_has_every_byte(shards: TokenShards, tokenizer: Tokenizer) -> None:
    assert shards.tokens % CONTEXT_LENGTH  # the last window is a shorter one
    loss = measure_loss(build_model(), shards, tokenizer.byte_lengths, None, 8)
    assert loss.bytes == shards.bytes == sum(len(text.encode()) for text in DOCUMENTS)
    assert loss.tokens == loss.bytes + 1  # the end-of-text between the two


def test_a_uniform_model_pays_the_logarithm_of_its_vocabulary(shards: TokenShards, tokenizer: Tokenizer) -> None:
    model = build_model()
    torch.nn.init.zeros_(model.head.weight)
    loss = measure_loss(model, shards, tokenizer.byte_lengths, None, 8)
    assert loss.loss == pytest.approx(math.log(257))
    assert loss.perplexity == pytest.approx(257)


def test_bits_per_byte_of_bytes_is_the_loss_in_bits() -> None:
    loss = Loss(nats=300.0, tokens=100, bytes=100)
    assert loss.bits_per_byte == pytest.approx(loss.loss / math.log(2))
    assert Loss(nats=100 * math.log(256), tokens=100, bytes=100).bits_per_byte == pytest.approx(8.0)


def test_end_of_text_costs_but_has_no_bytes(shards: TokenShards, tokenizer: Tokenizer) -> None:
    loss = measure_loss(build_model(), shards, tokenizer.byte_lengths, None, 8)
    assert loss.bits_per_byte == pytest.approx(loss.loss * loss.tokens / math.log(2) / (loss.tokens - 1))


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_comes_back(shards: TokenShards, tokenizer: Tokenizer, training: bool) -> None:
    model = build_model()
    expected = measure_loss(model, shards, tokenizer.byte_lengths, None, 8)
    model.train(training)
    assert measure_loss(model, shards, tokenizer.byte_lengths, None, 8) == expected
    assert model.training is training
    assert model.blocks[0].training is training
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.is_grad_enabled()


def test_another_vocabulary_is_refused(shards: TokenShards, tokenizer: Tokenizer) -> None:
    model = build_model(vocab_size=300).train()
    with pytest.raises(ArtifactError, match=r"vocabulary has 300 tokens, that of the encoded text 257: .*dvc repro"):
        measure_loss(model, shards, tokenizer.byte_lengths, None, 8)
    assert model.training


def test_text_without_bytes_is_refused(shards: TokenShards) -> None:
    with pytest.raises(DataError, match=r"holds no text: raise prepare.validation_fraction"):
        measure_loss(build_model(), shards, np.zeros(257, dtype=np.int64), None, 8)


@pytest.mark.parametrize(("tokens", "windows"), [(None, None), (1, 1), (16, 1), (31, 1), (32, 2), (1e6, 62_500)])
def test_tokens_become_whole_windows(tokens: float | None, windows: int | None) -> None:
    params = parse_section(EvaluateParams, "evaluate", {**EVERYTHING, "max_tokens": tokens})
    assert params.windows(CONTEXT_LENGTH) == windows


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**EVERYTHING, "max_tokens": 0}, r"evaluate.max_tokens=0: must be greater than or equal to 1"),
        ({**EVERYTHING, "max_tokens": "all"}, r"evaluate.max_tokens='all': must be a whole number"),
        ({**EVERYTHING, "max_items": 0}, r"evaluate.max_items=0: must be greater than or equal to 1"),
        ({}, r"evaluate.max_tokens is missing"),
        ({**EVERYTHING, "max_token": 1}, r"did you mean evaluate.max_tokens\?"),
    ],
)
def test_a_broken_rule_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse_section(EvaluateParams, "evaluate", values)
