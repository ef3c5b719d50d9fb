"""Parameters of the sample stage."""

from collections import Counter
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lmcore.generate.open_decoder import DECODERS
from lmcore.generate.quantize import WEIGHT_TYPES
from lmcore.generate.sampling import Sampling
from lmcore.params import Int, Section, choice


class SampleParams(Section):
    """The prompts and how they are continued. Temperature 0 takes the likeliest token; an empty limit is off."""

    prompts: list[str] = Field(
        default_factory=lambda: ["def ", "import os\n", "class Node:\n    def __init__(self", "# Copyright"]
    )
    samples_per_prompt: Int = Field(default=2, ge=1)
    max_new_tokens: Int = Field(default=200, ge=1, le=1_000_000)
    temperature: float = Field(default=0.7, ge=0.0)
    top_k: Int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=0.9, gt=0.0, le=1.0)
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100.0)
    stop: Annotated[list[str], BeforeValidator(lambda value: [] if value is None else value)] = Field(
        default_factory=list
    )
    draft_tokens: Int | None = Field(default=None, ge=1)
    decoder: Annotated[str, choice(DECODERS)] = "plain"
    weights: Annotated[str, choice(WEIGHT_TYPES)] = "float32"
    seed: Int = 1

    @field_validator("prompts")
    @classmethod
    def _check_prompts(cls, prompts: list[str]) -> list[str]:
        if not prompts:
            raise ValueError("sample.prompts=[]: must hold a prompt ('' begins a new document)")
        prompt, count = Counter(prompts).most_common(1)[0]
        if count > 1:
            raise ValueError(
                f"sample.prompts: {prompt!r} is there {count} times and would give the same samples: "
                f"write it once and set sample.samples_per_prompt={count}"
            )
        return prompts

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: list[str]) -> list[str]:
        if "" in stop:
            raise ValueError("sample.stop: '' is in every text: leave it out")
        return stop

    @model_validator(mode="after")
    def _check_drafts(self) -> Self:
        if self.draft_tokens and DECODERS[self.decoder].drafts_by_itself:
            raise ValueError(
                f"sample.draft_tokens={self.draft_tokens}: sample.decoder={self.decoder} has draft tokens of its own: "
                f"leave it empty, or set sample.decoder=plain"
            )
        return self

    @property
    def sampling(self) -> Sampling:
        """How each token is chosen."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
