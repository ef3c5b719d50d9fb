"""Parameters of the encode stage."""

from typing import Annotated

from pydantic import Field

from lmcore.params import Int, Section


class EncodeParams(Section):
    """How tokens are cut into files, and the folder of those that are taken as they are instead of the documents."""

    shard_tokens: Int = Field(default=10_000_000, ge=1)
    tokenized: Annotated[str, Field(min_length=1)] | None = None
