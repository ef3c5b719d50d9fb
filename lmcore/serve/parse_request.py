"""What a request asks for, as texts for the engine: prompts as tokens, everything within the limits."""

import secrets
from dataclasses import dataclass

from lmcore.files import derive_seed
from lmcore.generate.decoder import Request
from lmcore.serve.api_errors import ApiError
from lmcore.serve.engine import TextRequest
from lmcore.serve.openai_schema import CompletionRequest, Prompt
from lmcore.serve.params import MOST_FIGURES
from lmcore.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    model: str
    max_tokens: int
    most_texts: int


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt as `text`, and the `tokens` that the model reads; an empty one is an end-of-text, not `told`."""

    text: str
    tokens: list[int]
    told: list[int]


def check_request(body: CompletionRequest, limits: Limits) -> None:
    """Raise ApiError for another model, or for more than the limits."""
    require_model(body.model, limits.model)
    if body.new_tokens > limits.max_tokens:
        raise ApiError(
            400, f"max_tokens={body.new_tokens}: this server gives at most {limits.max_tokens}", field="max_tokens"
        )
    if not body.new_tokens and not body.echo:
        raise ApiError(400, "max_tokens=0: nothing is asked for without echo=true", field="max_tokens")
    texts = len(body.prompt) * body.choices
    if texts > limits.most_texts:
        raise ApiError(
            400,
            f"{len(body.prompt)} prompts with n={body.choices} are {texts} texts: this server takes at most "
            f"{limits.most_texts} at once",
            field="n" if body.choices > 1 else "prompt",
        )


def require_model(asked: str | None, served: str) -> None:
    """Raise ApiError for any model but the one that is served."""
    if asked not in (None, served):
        raise ApiError(
            404, f"the model {asked[:100]!r} is not served here, {served!r} is", field="model", code="model_not_found"
        )


def read_prompt(prompt: Prompt, tokenizer: Tokenizer, context_length: int) -> TokenPrompt:
    """A prompt as the model sees it. Raises ApiError for one that is too long, or for ids that there are not."""
    if isinstance(prompt, str):
        # Cut into tokens only what may fit: that takes time, of any length.
        least = -(-len(prompt.encode()) // int(tokenizer.byte_lengths.max()))
        if least > context_length:
            raise too_long(f"at least {least}", context_length)
        tokens = tokenizer.encode(prompt)
    else:
        tokens = prompt
        if wrong := [token for token in tokens if not 0 <= token < tokenizer.vocab_size]:
            raise ApiError(
                400,
                f"the token {str(wrong[0])[:40]} is not in the vocabulary: must be 0 to {tokenizer.vocab_size - 1}",
                field="prompt",
            )
    if len(tokens) > context_length:
        raise too_long(str(len(tokens)), context_length)
    text = prompt if isinstance(prompt, str) else tokenizer.decode(tokens)
    return TokenPrompt(text, tokens or [tokenizer.end_of_text], tokens)


def too_long(tokens: str, context_length: int) -> ApiError:
    """The refusal of a prompt."""
    return ApiError(
        400,
        f"the prompt has {tokens} tokens, the model's context {context_length}: shorten it",
        field="prompt",
        code="context_length_exceeded",
    )


def check_figures(body: CompletionRequest, prompts: list[TokenPrompt]) -> None:
    """Raise ApiError for log-probabilities of more tokens than memory is for."""
    if body.logprobs is None:
        return
    tokens = sum(body.new_tokens + (len(prompt.told) if body.echo else 0) for prompt in prompts) * body.choices
    if (figures := tokens * (1 + body.logprobs)) > MOST_FIGURES:
        raise ApiError(
            400,
            f"logprobs={body.logprobs} of {tokens:,} tokens in all are {figures:,} figures: this server gives at most "
            f"{MOST_FIGURES:,} at once",
            field="logprobs",
        )


def build_texts(body: CompletionRequest, prompts: list[TokenPrompt]) -> list[TextRequest]:
    """`n` texts of each prompt in turn.

    The `number`-th of a prompt has the seed of the sample stage's, so that `lmcore sample` with the same settings says
    the same; without a seed, one that nobody knows.
    """
    seed = secrets.randbits(32) if body.seed is None else body.seed
    measures_prompt = bool(body.echo) and body.logprobs is not None
    return [
        TextRequest(
            Request(
                prompt.tokens,
                body.new_tokens or 1,  # OpenAI's 0, with `echo`: one is decoded, and not told
                body.sampling,
                derive_seed(seed, prompt.text, number),
                body.logprobs,
                body.stop,
            ),
            measures_prompt,
        )
        for prompt in prompts
        for number in range(1, body.choices + 1)
    ]
