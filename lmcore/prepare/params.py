"""The parameters of the prepare stage."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmcore.params import Int, Section, choice
from lmcore.prepare.quality import FILTERS


class PrepareParams(Section):
    """Section `prepare`. Validation is a fraction of the documents (hash) or of the characters (tail)."""

    text_field: Annotated[str, Field(min_length=1)] = "text"
    separator: Annotated[str, Field(min_length=1)] | None = None
    split: Literal["hash", "tail"] = "hash"
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    min_characters: Annotated[Int, Field(ge=0)] = 1
    max_characters: Int | None = None
    max_rejected_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    max_leakage: Annotated[float, Field(ge=0, le=1)] | None = None
    contamination: Annotated[str, Field(min_length=1)] | None = None
    unicode: Literal["as_is", "nfc"] = "as_is"
    newlines: Literal["as_is", "unix"] = "as_is"
    quality: Annotated[str, choice(FILTERS)] = "none"
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_characters is not None and self.max_characters < max(1, self.min_characters):
            raise ValueError(
                f"prepare.max_characters={self.max_characters}: must be at least 1 and at least "
                f"prepare.min_characters={self.min_characters}, or null for no limit"
            )
        return self
