"""Parameters of the train_tokenizer stage."""

import re
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from lmcore.params import Int, Section, choice
from lmcore.tokenizer.base import END_OF_TEXT
from lmcore.tokenizer.load import KINDS

# So spelt no special token can become an entry of text: our patterns cut text between a letter and what follows it.
PUNCTUATION = "[!-/:-@[-`{-~]"
SPECIAL_TOKEN = re.compile(f"{PUNCTUATION}[!-~]*[A-Za-z0-9][!-~]*{PUNCTUATION}")


class TokenizerParams(Section):
    """Section `train_tokenizer`. Each kind reads the keys that KINDS names for it.

    `special_tokens` are reserved, for fine-tuning: ids that no text encodes to. `max_bytes` of the training text are
    looked at, by a fair sample.
    """

    kind: Annotated[str, choice(KINDS)] = "bpe"
    vocab_size: Int | None = 2048
    digits: Int | None = 2
    special_tokens: Annotated[list[str], BeforeValidator(lambda value: [] if value is None else value)] = Field(
        default=None, validate_default=True
    )
    name: str | None = None
    max_bytes: Annotated[Int, Field(ge=1)] | None = 1_000_000_000

    @property
    def values_read(self) -> dict[str, Any]:
        """The values of the keys that the kind reads, and the special tokens."""
        return {key: getattr(self, key) for key in ("special_tokens", *KINDS[self.kind].reads)}

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        KINDS[self.kind].check(**self.values_read)
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
