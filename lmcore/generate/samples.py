"""The samples of a list of prompts."""

from dataclasses import dataclass
from typing import Any

from lmcore.errors import ParameterError
from lmcore.files import derive_seed
from lmcore.generate.decoder import Decoder, Request, Tally
from lmcore.generate.params import DecoderKind, SampleParams
from lmcore.generate.prompt_lookup import PromptLookup
from lmcore.generate.text_stream import Completion, collect, complete
from lmcore.generate.tidar import DiffusionDecoder, count_masks
from lmcore.model.gpt import GPT
from lmcore.model.vocabulary import list_text_tokens, require_vocabulary
from lmcore.runtime.progress import warn
from lmcore.tokenizer.base import Tokenizer

MOST_ROWS = 64
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Sample:
    """One continuation: the `number`-th of its prompt, counted from 1."""

    prompt: str
    number: int
    seed: int
    completion: Completion

    @property
    def text(self) -> str:
        """The prompt and what follows."""
        return self.prompt + self.completion.text


def open_decoder(
    model: GPT,
    tokenizer: Tokenizer,
    *,
    batch: int = MOST_ROWS,
    longest: int | None = None,
    draft_tokens: int | None = None,
    kind: DecoderKind = "plain",
    compile: bool = False,  # noqa: A002
) -> Decoder:
    """The engine for texts of at most `longest` tokens, prompt included; as many rows as `batch` and memory allow.

    Raises ArtifactError where the tokenizer is not the model's, ParameterError for TiDAR's with a model without masks.
    """
    require_vocabulary(model, tokenizer)
    params = model.params
    capacity = min(params.context_length, longest or params.context_length)
    size, is_fused = params.diffusion.block_size or 0, kind == "tidar-one-forward"
    masks = 0 if kind == "plain" else count_masks(size, one_forward=is_fused)
    row_bytes = 2 * params.n_layers * (capacity + masks) * params.kv_heads * params.head_width * 4
    row_bytes = max(row_bytes, 4 * (masks + size) * model.vocab_size if is_fused else 0)  # and of a row's scores
    options: dict[str, Any] = {
        "batch": max(1, min(batch, CACHE_BYTES // row_bytes)),
        "end_of_text": tokenizer.end_of_text,
        "allowed": list_text_tokens(tokenizer),
        "capacity": capacity,
        "compile": compile,
    }
    if kind != "plain":
        if params.diffusion.block_size is None:
            raise ParameterError(
                f"sample.decoder={kind}: the model has no masks to guess with: train one with "
                f"model.diffusion.block_size=4, or set sample.decoder=plain"
            )
        return DiffusionDecoder(model, one_forward=is_fused, **options)
    return Decoder(model, open_drafts=PromptLookup if draft_tokens else None, draft_tokens=draft_tokens or 0, **options)


def draw_samples(model: GPT, tokenizer: Tokenizer, params: SampleParams) -> tuple[list[Sample], Tally]:
    """`params.samples_per_prompt` samples of each prompt in turn, and what drafting gave.

    Any text can be a prompt; an empty one begins a new document. One longer than the context is continued from its end
    (see `Decoder`), with a notice. Raises ArtifactError where the tokenizer is not the model's.
    """
    prompts = {prompt: encode_prompt(prompt, tokenizer, model.params.context_length) for prompt in params.prompts}
    wanted = number_samples(params)
    requests = [build_request(params, prompt, prompts[prompt], number) for prompt, number in wanted]
    longest = max(map(len, prompts.values())) + params.max_new_tokens
    drafts, kind = params.draft_tokens, params.decoder
    decoder = open_decoder(model, tokenizer, batch=len(requests), longest=longest, draft_tokens=drafts, kind=kind)
    completions = collect(complete(decoder, tokenizer, requests), len(requests))
    samples = [
        Sample(tokenizer.decode(tokenizer.encode(prompt)), number, request.seed, completion)
        for (prompt, number), request, completion in zip(wanted, requests, completions, strict=True)
    ]
    return samples, decoder.tally


def number_samples(params: SampleParams) -> list[tuple[str, int]]:
    """Each prompt with the numbers of its samples, from 1."""
    return [(prompt, number) for prompt in params.prompts for number in range(1, params.samples_per_prompt + 1)]


def build_request(params: SampleParams, prompt: str, tokens: list[int], number: int) -> Request:
    """The `number`-th sample of a prompt, which is `tokens`."""
    # The seed depends on these three alone: adding or reordering prompts leaves every other sample as it was.
    seed = derive_seed(params.seed, prompt, number)
    return Request(tokens, params.max_new_tokens, params.sampling, seed, logprobs=0, stop=params.stop)


def encode_prompt(prompt: str, tokenizer: Tokenizer, context_length: int) -> list[int]:
    """The tokens of a prompt, end-of-text for an empty one; says if the model will see its end alone."""
    tokens = tokenizer.encode(prompt) or [tokenizer.end_of_text]
    if len(tokens) > context_length:
        warn(
            f"the prompt {prompt[:20]!r}... has {len(tokens)} tokens, the model's context {context_length}: "
            f"continued from its last {context_length // 2}"
        )
    return tokens
