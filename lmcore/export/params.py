"""Parameters of the export stage."""

from typing import Literal

from pydantic import Field

from lmcore.export.llama_cpp import Numbers
from lmcore.params import Section


class ExportParams(Section):
    """What the exported model is called, the type of its numbers, and that of a GGUF file's beside it, if any."""

    name: str = Field(default="lmcore-stdlib", min_length=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    gguf: Numbers | None = None
