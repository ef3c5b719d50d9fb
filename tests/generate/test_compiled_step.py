"""The compiled step says what the model says."""

import os
import shutil

import pytest
from tiny import GPT2_MODEL, TINY_MODEL, sharpen

from lmcore.generate.decoder import Decoder, Request
from lmcore.generate.quantize import convert_weights
from lmcore.generate.sampling import Sampling
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams

# The compiler loads a part of torch that uses another, deprecated one.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="compiling needs a C++ compiler"),
]

REQUESTS = [
    Request([5, 6, 7, 5, 6, 7, 5, 6], 12, Sampling(temperature=0)),
    Request([1], 30, Sampling(temperature=0.5), seed=1),
    Request(list(range(40)), 9, Sampling(temperature=0.5), seed=2),
]


def build_model(params: ModelParams, seed: int) -> GPT:
    return sharpen(GPT(params, 60, seed, end_of_text=7))


def decode(decoder: Decoder) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in REQUESTS]
    for token in decoder.decode(REQUESTS):
        texts[token.key].append(token.token)
    return texts


def test_one_compiled_layer_is_eager() -> None:
    """The least that can be compiled: the rest is slow."""
    model = build_model(TINY_MODEL.model_copy(update={"n_layers": 1}), 1)
    expected = decode(Decoder(model, batch=2, end_of_text=-1))
    assert decode(Decoder(model, batch=2, end_of_text=-1, compile=True)) == expected


@pytest.mark.slow
def test_compiled_is_eager() -> None:
    """Two models in turns: each function is called without asking whether it was compiled for these arguments."""
    models = [build_model(GPT2_MODEL, 1), build_model(TINY_MODEL.model_copy(update={"document_mask": True}), 2)]
    compiled, eager = (
        [Decoder(model, batch=2, end_of_text=-1, compile=is_compiled) for model in models]
        for is_compiled in (True, False)
    )
    expected = [decode(decoder) for decoder in eager]
    assert all(len({token for text in texts for token in text}) > 5 for texts in expected)  # else it says little
    assert [decode(decoder) for decoder in compiled] == expected
    assert [decode(decoder) for decoder in compiled] == expected


@pytest.mark.slow
def test_compiled_drafts_and_int8_are_eager() -> None:
    model = convert_weights(build_model(TINY_MODEL, 1), "int8")
    expected = decode(Decoder(model, batch=1, end_of_text=-1))
    drafted = Decoder(model, batch=1, end_of_text=-1, compile=True, draft_tokens=3)
    assert decode(drafted) == expected
    assert drafted.stats.accepted > 0
