"""From the body of a request to the engine's requests: limits checked, prompts as tokens."""

import secrets
from dataclasses import dataclass

from lmcore.files import derive_seed
from lmcore.generate.decoder import Request
from lmcore.serve.api_errors import ApiError
from lmcore.serve.openai_schema import CompletionRequest, Prompt
from lmcore.serve.params import MAX_FIGURES, ServerParams
from lmcore.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt as `text`, its `tokens`, and those that the model reads: of an empty one, an end-of-text."""

    text: str
    tokens: list[int]
    read: list[int]


def check_request(body: CompletionRequest, params: ServerParams, max_texts: int) -> None:
    """Raise ApiError for another model, or for more than the limits."""
    require_model(body.model, params.name)
    if body.new_tokens > params.max_tokens:
        raise ApiError(
            400, f"max_tokens={body.new_tokens}: this server gives at most {params.max_tokens}", field="max_tokens"
        )
    if not body.new_tokens and not body.echo:
        raise ApiError(400, "max_tokens=0: nothing is asked for without echo=true", field="max_tokens")
    texts = len(body.prompt) * body.choices
    if texts > max_texts:
        raise ApiError(
            400,
            f"{len(body.prompt)} prompts with n={body.choices} are {texts} texts: this server takes at most "
            f"{max_texts} at once",
            field="n" if body.choices > 1 else "prompt",
        )


def require_model(asked: str | None, served: str) -> None:
    """Raise ApiError for any model but the one that is served."""
    if asked not in (None, served):
        raise ApiError(
            404, f"the model {asked[:100]!r} is not served here, {served!r} is", field="model", code="model_not_found"
        )


def read_prompt(prompt: Prompt, tokenizer: Tokenizer, context_length: int) -> TokenPrompt:
    """Return a prompt as tokens. Raises ApiError for one that is too long, or for ids beyond the vocabulary."""
    if isinstance(prompt, str):
        # Encode only what may fit: encoding takes time.
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
    return TokenPrompt(text, tokens, tokens or [tokenizer.end_of_text])


def too_long(tokens: str, context_length: int) -> ApiError:
    """Return the error for a prompt of so many tokens."""
    return ApiError(
        400,
        f"the prompt has {tokens} tokens, the model's context {context_length}: shorten it",
        field="prompt",
        code="context_length_exceeded",
    )


def check_logprobs(body: CompletionRequest, prompts: list[TokenPrompt]) -> None:
    """Raise ApiError for log-probabilities that would take too much memory."""
    if body.logprobs is None:
        return
    tokens = sum(body.new_tokens + (len(prompt.tokens) if body.echo else 0) for prompt in prompts) * body.choices
    if (figures := tokens * (1 + body.logprobs)) > MAX_FIGURES:
        raise ApiError(
            400,
            f"logprobs={body.logprobs} of {tokens:,} tokens in all are {figures:,} figures: this server gives at most "
            f"{MAX_FIGURES:,} at once",
            field="logprobs",
        )


def build_requests(body: CompletionRequest, prompts: list[TokenPrompt]) -> list[Request]:
    """Return `n` requests for each prompt in turn.

    The `number`-th of a prompt has the sample stage's seed, so that `lmcore sample` with the same parameters gives the
    same text; without a seed, a random one.
    """
    seed = secrets.randbits(32) if body.seed is None else body.seed
    return [
        Request(
            prompt.read,
            body.new_tokens or 1,  # OpenAI's 0, with `echo`: one is decoded, and not returned
            body.sampling,
            derive_seed(seed, prompt.text, number),
            body.logprobs,
            body.stop,
        )
        for prompt in prompts
        for number in range(1, body.choices + 1)
    ]
