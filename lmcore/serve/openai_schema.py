"""Requests and responses of OpenAI's completions API, with vLLM's additional sampling parameters."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from lmcore.generate.sampling import Sampling
from lmcore.serve.params import MAX_LOGPROBS, MAX_STOPS

Prompt = str | list[int]
TEXT_OR_LIST = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}]})
SURROGATE = re.compile(r"[\ud800-\udfff]")


def _read_prompts(value: Any) -> list[Prompt]:
    """A text, a list of texts, a list of ids, or a list of such lists, as a list of prompts."""
    match value:
        case None:
            prompts: list[Prompt] = [""]
        case str() | [int(), *_]:
            prompts = [value]
        case [str() | list(), *_]:
            prompts = value
        case _:
            prompts = []
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    ids = [prompt for prompt in prompts if isinstance(prompt, list) and all(type(token) is int for token in prompt)]
    if not prompts or prompts not in (texts, ids):
        raise ValueError("must be a text, a list of texts, a list of token ids, or a list of such lists")
    if any(map(SURROGATE.search, texts)):
        raise ValueError("is not valid Unicode (half of a surrogate pair)")
    return prompts


def _read_stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and not SURROGATE.search(stop) for stop in stops):
        raise ValueError("must be a text or a list of texts")
    if "" in stops:
        raise ValueError("'' is in every text: leave it out")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"has {len(stops)} texts, at most {MAX_STOPS} are looked for")
    return tuple(stops)


def _neutral(*values: Any) -> AfterValidator:
    """A field of OpenAI's that is read and must not ask for anything."""

    def check(value: Any) -> Any:
        if value is not None and value not in values:
            raise ValueError(f"is not supported here, leave it out (it was {str(value)[:60]!r})")
        return value

    return AfterValidator(check)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Body):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: Annotated[bool | None, _neutral(False)] = None


class CompletionRequest(_Body):
    """The body of `POST /v1/completions`, with OpenAI's defaults."""

    model: str | None = None
    prompt: Annotated[list[Prompt], PlainValidator(_read_prompts), TEXT_OR_LIST] = Field(default=[""])
    max_tokens: int | None = Field(default=16, ge=0)
    n: int | None = Field(default=1, ge=1, le=128)
    temperature: float | None = Field(default=1.0, ge=0.0)
    top_p: float | None = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=0.0, ge=0.0, le=1.0)
    repetition_penalty: float | None = Field(default=1.0, ge=0.01, le=100.0)
    stop: Annotated[tuple[str, ...], PlainValidator(_read_stops), TEXT_OR_LIST] = ()
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = False
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    best_of: int | None = None
    presence_penalty: Annotated[float | None, _neutral(0.0)] = None
    frequency_penalty: Annotated[float | None, _neutral(0.0)] = None
    logit_bias: Annotated[dict[str, float] | None, _neutral({})] = None
    suffix: Annotated[str | None, _neutral("")] = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.best_of not in (None, self.choices):
            raise ValueError(f"best_of={self.best_of}: is not supported beyond n ({self.choices}), leave it out")
        if self.stream_options and not self.stream:
            raise ValueError("stream_options: is for stream=true alone")
        return self

    @property
    def choices(self) -> int:
        """Texts of each prompt."""
        return self.n or 1

    @property
    def new_tokens(self) -> int:
        """Of each text, at most."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters."""
        return Sampling(
            1.0 if self.temperature is None else self.temperature,
            self.top_k if self.top_k and self.top_k > 0 else None,
            self.top_p if self.top_p and self.top_p < 1 else None,
            self.min_p or None,
            self.repetition_penalty or 1.0,
        )


class Logprobs(BaseModel):
    """Of some tokens one after the other; `text_offset` counts characters from the beginning of the choice's text."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = []
    text_offset: list[int] = []


class Choice(BaseModel):
    """One text, or the next part of it; `index` counts all texts of all prompts."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Usage(BaseModel):
    """Tokens of a request, each prompt once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionResponse(BaseModel):
    """The response of `POST /v1/completions`, and each event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None
