"""Train, load and measure a tokenizer of any kind."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from lmcore.errors import ArtifactError, DataError
from lmcore.files import named_path, read_json
from lmcore.params import Int, Section
from lmcore.tokenizer.adopted import adopt_tokenizer, define_pair, find_pair
from lmcore.tokenizer.base import FILE_NAME, Tokenizer
from lmcore.tokenizer.bpe import SMALLEST_VOCABULARY, BpeTokenizer
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokenizer.char import CharTokenizer
from lmcore.tokenizer.pretrained import fetch_pretrained, list_pretrained

REMEDY = "run the train_tokenizer stage (dvc repro train_tokenizer), or fetch it (dvc pull)"


class TokenizerParams(Section):
    """Which tokenizer. `vocab_size` is read by bpe alone and `name` by pretrained alone: the others have their own.

    `max_bytes` of the training text are looked at, by a fair sample.
    """

    kind: Literal["bpe", "char", "byte", "pretrained"]
    vocab_size: Int | None
    name: str | None
    max_bytes: Annotated[Int, Field(ge=1)] | None

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.kind == "bpe" and (self.vocab_size is None or self.vocab_size < SMALLEST_VOCABULARY):
            raise ValueError(
                f"train_tokenizer.vocab_size={self.vocab_size}: must be at least {SMALLEST_VOCABULARY} for kind bpe "
                f"(256 bytes and end-of-text)"
            )
        if self.kind == "pretrained" and not is_folder(self.name) and self.name not in list_pretrained():
            raise ValueError(
                f"train_tokenizer.name={self.name}: must be one of {', '.join(list_pretrained())}, or the folder of a "
                f"model or tokenizer (with a / in it), for kind pretrained"
            )
        return self


def train_tokenizer(params: TokenizerParams, texts: Iterable[list[str]]) -> Tokenizer:
    """The tokenizer that `params` ask for; the same texts give the same artefact, byte for byte."""
    match params.kind:
        case "bpe":
            assert params.vocab_size is not None
            return BpeTokenizer.train(texts, params.vocab_size)
        case "char":
            return CharTokenizer.train(texts)
        case "byte":
            return ByteTokenizer.create()
        case "pretrained":
            assert params.name is not None
            return load_tokenizer(named_path(params.name)) if is_folder(params.name) else fetch_pretrained(params.name)


def is_folder(name: str | None) -> bool:
    """Whether a pretrained tokenizer is named by its folder, as models/gpt, not by its published name."""
    return name is not None and "/" in name


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`, ours or another's. Raises ArtifactError for a missing, damaged or unsuitable file."""
    path = folder / FILE_NAME
    pair = None if path.exists() else find_pair(folder)
    try:
        if pair is not None:
            path = pair[0]
            return adopt_tokenizer(path, define_pair(read_json(path, REMEDY), pair[1].read_text(encoding="utf-8")))
        definition = read_json(path, REMEDY)
        for kind in (ByteTokenizer, CharTokenizer, BpeTokenizer):
            if kind.has_written(definition):
                return kind(path.read_bytes())
        return adopt_tokenizer(path, definition)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({type(error).__name__}: {error}): {REMEDY}") from None


def measure_tokenizer(tokenizer: Tokenizer, texts: Iterable[list[str]]) -> dict[str, int | float]:
    """Metrics on `texts`: vocab_size, bytes_per_token, and unused_tokens, the entries that never occur.

    Entries of a single byte, which are there so that no text fails, and end-of-text are not counted as unused.
    """
    used = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for batch in texts:
        for ids in tokenizer.encode_batch(batch):
            np.add.at(used, ids, 1)
    if not used.any():
        raise DataError("the train documents hold no text: check data/raw and the prepare section of params.yaml")
    return {
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": round(float(used @ tokenizer.byte_lengths / used.sum()), 4),
        "unused_tokens": int(np.sum((used == 0) & (tokenizer.byte_lengths > 1))),
    }
