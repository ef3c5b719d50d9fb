"""Train a tokenizer, or fetch a published one."""

from collections.abc import Iterable

from lmcore.hub import find_model
from lmcore.tokenizer.base import FILE_NAME, Tokenizer
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokenizer.char import CharTokenizer
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokenizer.pretrained import fetch_pretrained
from lmcore.train_tokenizer.params import TokenizerParams, is_place


def train_tokenizer(params: TokenizerParams, texts: Iterable[list[str]]) -> Tokenizer:
    """The tokenizer that `params` ask for; the same texts give the same artefact, byte for byte."""
    return _train(params, texts).reserve(params.special_tokens)


def _train(params: TokenizerParams, texts: Iterable[list[str]]) -> Tokenizer:
    match params.kind:
        case "bpe":
            assert params.vocab_size is not None
            assert params.digits is not None
            return BpeTokenizer.train(texts, params.vocab_size - len(params.special_tokens), params.digits)
        case "char":
            return CharTokenizer.train(texts)
        case "byte":
            return ByteTokenizer.create()
        case "pretrained":
            assert params.name is not None
            return load_named(params.name) if is_place(params.name) else fetch_pretrained(params.name)


def load_named(name: str) -> Tokenizer:
    """The tokenizer of the folder or repository that `train_tokenizer.name` is.

    Raises ArtifactError as `load_tokenizer` does, and as `find_model` does.
    """
    place = find_model(name, "train_tokenizer.name", weights=False)
    files = f"{FILE_NAME}, vocab.json and merges.txt, or encoder.json and vocab.bpe, each whole"
    return load_tokenizer(place.folder, f"train_tokenizer.name={name} must be a place with {files}")
