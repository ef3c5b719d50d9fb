"""Train a tokenizer, or fetch a published one."""

from collections.abc import Iterable

from lmcore.tokenizer.base import Tokenizer
from lmcore.tokenizer.load import KINDS
from lmcore.train_tokenizer.params import TokenizerParams


def train_tokenizer(params: TokenizerParams, texts: Iterable[list[str]]) -> Tokenizer:
    """The tokenizer that `params` ask for; the same texts give the same artefact, byte for byte."""
    return KINDS[params.kind].train(texts, **params.values_read)


def expect_vocabulary(params: TokenizerParams) -> int:
    """Entries that the tokenizer will have; `char` is a guess, and so is `bpe` where the text is too short for all."""
    return KINDS[params.kind].expect(**params.values_read)
