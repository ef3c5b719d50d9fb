"""Cached decoding: a prompt in, tokens out one by one; and the samples of a list of prompts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lmcore.errors import ArtifactError
from lmcore.files import derive_seed
from lmcore.generate.sampling import SampleParams, choose
from lmcore.model.cache import KeyValueCache
from lmcore.model.gpt import GPT
from lmcore.progress import warn
from lmcore.tokenizer.base import Tokenizer

Pick = Callable[[Tensor], Tensor]  # from logits (B, V) to tokens (B,)


def build_cache(model: GPT, batch: int) -> KeyValueCache:
    """An empty cache for `batch` texts of the model's whole context, where the model is and of its type."""
    params, weight = model.params, model.token_embedding.weight
    return KeyValueCache(
        params.n_layers,
        batch,
        params.kv_heads,
        params.context_length,
        params.head_width,
        device=weight.device,
        dtype=weight.dtype,
    )


@torch.inference_mode()
def generate(model: GPT, prompt: Sequence[int], pick: Pick, *, max_new_tokens: int, end_of_text: int) -> Iterator[int]:
    """The tokens that follow `prompt` (at least one token), each as soon as it is known.

    Ends before `end_of_text` or after `max_new_tokens`. Where the prompt is longer than the model's context, and each
    time the context is full, the text goes on from its last context_length // 2 tokens.
    """
    assert prompt
    assert not model.training
    context_length, device = model.params.context_length, model.token_embedding.weight.device
    cache = build_cache(model, batch=1)
    tokens = list(prompt)
    unread = tokens  # what the cache has not seen yet: the prompt, then the newest token
    for _ in range(max_new_tokens):
        if cache.length + len(unread) > context_length:
            cache.crop(0)
            unread = tokens[-(context_length // 2) :]
        hidden = model.hidden(torch.tensor([unread], device=device), cache)  # (1, T, D)
        token = int(pick(model.logits(hidden[:, -1])))
        if token == end_of_text:
            return
        yield token
        tokens.append(token)
        unread = [token]


@dataclass(frozen=True)
class Sample:
    """One continuation: the `number`-th of its prompt, counted from 1."""

    prompt: str
    number: int
    text: str  # the prompt and what follows; an incomplete character at the end reads U+FFFD
    tokens: list[int]  # the new ones
    seed: int
    finish: Literal["length", "end_of_text"]


def draw_samples(model: GPT, tokenizer: Tokenizer, params: SampleParams) -> Iterator[Sample]:
    """`params.samples_per_prompt` samples of each prompt in turn; an empty prompt begins a new document.

    Any text can be a prompt. One longer than the context is continued from its end (see `generate`), with a notice.
    Raises ArtifactError where the tokenizer is not the model's.
    """
    if model.vocab_size != tokenizer.vocab_size:
        raise ArtifactError(
            f"the model's vocabulary has {model.vocab_size} tokens, its tokenizer's {tokenizer.vocab_size}: "
            f"make both again (dvc repro --force train)"
        )
    context_length = model.params.context_length
    for prompt in params.prompts:
        tokens = tokenizer.encode(prompt)
        if len(tokens) > context_length:
            warn(
                f"the prompt {prompt[:20]!r}... has {len(tokens)} tokens, the model's context {context_length}: "
                f"continued from its last {context_length // 2}"
            )
        for number in range(1, params.samples_per_prompt + 1):
            yield _draw(model, tokenizer, params, prompt, tokens, number)


def _draw(
    model: GPT, tokenizer: Tokenizer, params: SampleParams, prompt: str, tokens: list[int], number: int
) -> Sample:
    # The seed depends on these three alone: adding or reordering prompts leaves every other sample as it was.
    seed = derive_seed(params.seed, prompt, number)
    pick = partial(
        choose,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        generators=[torch.Generator().manual_seed(seed)],
    )
    start, end = tokens or [tokenizer.end_of_text], tokenizer.end_of_text
    new = list(generate(model, start, pick, max_new_tokens=params.max_new_tokens, end_of_text=end))
    finish: Literal["length", "end_of_text"] = "length" if len(new) == params.max_new_tokens else "end_of_text"
    return Sample(tokenizer.decode(tokens), number, tokenizer.decode(tokens + new), new, seed, finish)
