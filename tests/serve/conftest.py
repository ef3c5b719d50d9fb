"""A tiny model and servers of it, in threads of the test."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from serving import CONTEXT_LENGTH, Served, Start, serving
from tiny import TINY_MODEL, sharpen, tokenizer_params

from lmcore.model.gpt import GPT
from lmcore.tokenizer.base import Tokenizer
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(tokenizer_params("byte"), [])


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> GPT:
    params = TINY_MODEL.model_copy(update={"context_length": CONTEXT_LENGTH})
    return sharpen(GPT(params, tokenizer.vocab_size, seed=1, end_of_text=tokenizer.end_of_text))


@pytest.fixture(scope="session")
def served(model: GPT, tokenizer: Tokenizer) -> Iterator[Served]:
    """One for all tests that leave it as it was."""
    with serving(model, tokenizer) as served:
        yield served


@pytest.fixture
def start(model: GPT, tokenizer: Tokenizer) -> Iterator[Start]:
    """Servers with settings of their own; `delay` seconds are slept before each of the decoder's steps."""
    with ExitStack() as stack:

        def start_one(delay: float = 0.0, **settings: Any) -> Served:
            served = stack.enter_context(serving(model, tokenizer, **settings))
            step = served.engine.decoder.step

            def slow_step() -> Any:
                time.sleep(delay)
                return step()

            if delay:
                served.engine.decoder.step = slow_step  # type: ignore[method-assign]
            return served

        yield start_one
