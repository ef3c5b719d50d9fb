"""Parameters of the train_tokenizer stage."""

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from lmcore.params import Int, Section
from lmcore.tokenizer.base import END_OF_TEXT
from lmcore.tokenizer.bpe import SMALLEST_VOCABULARY
from lmcore.tokenizer.pretrained import list_pretrained

# So spelt no special token can become an entry of text: our patterns cut text between a letter and what follows it.
PUNCTUATION = "[!-/:-@[-`{-~]"


SPECIAL_TOKEN = re.compile(f"{PUNCTUATION}[!-~]*[A-Za-z0-9][!-~]*{PUNCTUATION}")


class TokenizerParams(Section):
    """Which tokenizer. `vocab_size` and `digits` are read by bpe alone and `name` by pretrained alone.

    `special_tokens` are reserved, for fine-tuning: ids that no text encodes to. `max_bytes` of the training text are
    looked at, by a fair sample.
    """

    kind: Literal["bpe", "char", "byte", "pretrained"] = "bpe"
    vocab_size: Int | None = 2048
    digits: Int | None = 2
    special_tokens: Annotated[list[str], BeforeValidator(lambda value: [] if value is None else value)] = Field(
        default=None, validate_default=True
    )
    name: str | None = None
    max_bytes: Annotated[Int, Field(ge=1)] | None = 1_000_000_000

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        smallest = SMALLEST_VOCABULARY + len(self.special_tokens)
        if self.kind == "bpe" and (self.vocab_size is None or self.vocab_size < smallest):
            raise ValueError(
                f"train_tokenizer.vocab_size={self.vocab_size}: must be at least {smallest} for kind bpe "
                f"(256 bytes, end-of-text and train_tokenizer.special_tokens)"
            )
        if self.kind == "bpe" and self.digits not in (1, 2, 3):
            raise ValueError(f"train_tokenizer.digits={self.digits}: must be 1, 2 or 3 for kind bpe")
        if self.kind == "pretrained" and not is_place(self.name) and self.name not in list_pretrained():
            raise ValueError(
                f"train_tokenizer.name={self.name}: must be one of {', '.join(list_pretrained())}, the folder of a "
                f"model or tokenizer (with a / in it), or OWNER/NAME on the Hugging Face hub, for kind pretrained"
            )
        return self

    @model_validator(mode="after")
    def _check_special_tokens(self) -> Self:
        for place, token in enumerate(self.special_tokens):
            name = f"train_tokenizer.special_tokens[{place}]={token!r}"
            if not SPECIAL_TOKEN.fullmatch(token):
                raise ValueError(
                    f"{name}: must be ASCII without spaces that begins and ends with a punctuation mark and has a "
                    f"letter or digit in between, as <|user|>"
                )
            if token == END_OF_TEXT:
                raise ValueError(f"{name}: every tokenizer has it, leave it out")
            if token in self.special_tokens[:place]:
                raise ValueError(f"{name}: is there twice, leave one out")
        return self


def is_place(name: str | None) -> bool:
    """Whether a pretrained tokenizer is named by its place, as models/gpt or openai-community/gpt2, not by itself."""
    return name is not None and "/" in name
