"""Parameters of the export stage."""

from typing import Annotated, Literal

from pydantic import Field

from lmcore.export.llama_cpp import GGUF_TYPES
from lmcore.params import Section, choice


class ExportParams(Section):
    """The name of the exported model, the type of its numbers, and that of a GGUF file beside it, if any."""

    name: str = Field(default="lmcore-stdlib", min_length=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    gguf: Annotated[str, choice(GGUF_TYPES)] | None = None
