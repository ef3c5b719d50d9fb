"""The samples of a list of prompts, and their report: a page to read, lines for programs, and metrics."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from lmcore.files import derive_seed
from lmcore.generate.decoder import DecodingStats, Request
from lmcore.generate.open_decoder import open_decoder
from lmcore.generate.params import SampleParams
from lmcore.generate.text_stream import Completion, Finish, collect, complete
from lmcore.model.gpt import GPT
from lmcore.runtime.progress import warn
from lmcore.tokenizer.base import Tokenizer

ENDINGS: dict[Finish, str] = {
    "length": "at the length asked for",
    "end_of_text": "at its end of text",
    "stop": "before a stop string",
}


@dataclass(frozen=True)
class Sample:
    """One continuation: the `number`-th of its prompt, counted from 1."""

    prompt: str
    number: int
    seed: int
    completion: Completion

    @property
    def text(self) -> str:
        """The prompt and its continuation."""
        return self.prompt + self.completion.text


def draw_samples(model: GPT, tokenizer: Tokenizer, params: SampleParams) -> tuple[list[Sample], DecodingStats]:
    """Draw `params.samples_per_prompt` samples of each prompt in turn; also return the yield of speculative decoding.

    Any text can be a prompt; an empty one begins a new document. One longer than the context is continued from its end
    (see `Decoder`), with a notice. Raises ArtifactError where the tokenizer is not the model's.
    """
    prompts = {prompt: encode_prompt(prompt, tokenizer, model.params.context_length) for prompt in params.prompts}
    wanted = number_samples(params)
    requests = [build_request(params, prompt, prompts[prompt], number) for prompt, number in wanted]
    longest = max(map(len, prompts.values())) + params.max_new_tokens
    decoder = open_decoder(
        model,
        tokenizer,
        batch=len(requests),
        longest=longest,
        draft_tokens=params.draft_tokens,
        kind=params.decoder,
    )
    completions = collect(complete(decoder, tokenizer, requests), len(requests))
    samples = [
        Sample(tokenizer.decode(tokenizer.encode(prompt)), number, request.seed, completion)
        for (prompt, number), request, completion in zip(wanted, requests, completions, strict=True)
    ]
    return samples, decoder.stats


def number_samples(params: SampleParams) -> list[tuple[str, int]]:
    """Return each prompt with the numbers of its samples, from 1."""
    return [(prompt, number) for prompt in params.prompts for number in range(1, params.samples_per_prompt + 1)]


def build_request(params: SampleParams, prompt: str, tokens: list[int], number: int) -> Request:
    """Return the request for the `number`-th sample of a prompt, which is `tokens`."""
    # The seed depends on these three alone: adding or reordering prompts leaves every other sample as it was.
    seed = derive_seed(params.seed, prompt, number)
    return Request(tokens, params.max_new_tokens, params.sampling, seed, logprobs=0, stop=params.stop)


def encode_prompt(prompt: str, tokenizer: Tokenizer, context_length: int) -> list[int]:
    """Return the tokens of a prompt, end-of-text for an empty one; warn if it is longer than the context."""
    tokens = tokenizer.encode(prompt) or [tokenizer.end_of_text]
    if len(tokens) > context_length:
        warn(
            f"the prompt {prompt[:20]!r}... has {len(tokens)} tokens, the model's context {context_length}: "
            f"continued from its last {context_length // 2}"
        )
    return tokens


def render_markdown(params: SampleParams, samples: Sequence[Sample]) -> str:
    """Return the parameters, then each prompt with its samples, every text in a fenced block that it cannot close."""
    lines = ["# Samples", "", "| setting | value |", "|---|---|"]
    shown = params.model_dump(exclude={"prompts"})
    lines += [f"| {name} | {'' if value is None else value} |" for name, value in shown.items()]
    for position, (prompt, drawn) in enumerate(groupby(samples, key=lambda sample: sample.prompt), start=1):
        lines += ["", f"## Prompt {position}", "", fence(prompt) if prompt else "Empty: a new document."]
        for sample in drawn:
            tokens, ending = len(sample.completion.tokens), ENDINGS[sample.completion.finish]
            heading = f"### Sample {position}.{sample.number}: {tokens} new tokens, stopped {ending}"
            lines += ["", heading, "", fence(sample.text)]
    return "\n".join(lines) + "\n"


def fence(text: str) -> str:
    """`text` as a Markdown code block, its fence longer than any run of backticks inside."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}text\n{text}\n{marks}"


def render_json_lines(samples: Sequence[Sample]) -> str:
    """One JSON object a line, in ASCII: no character of a sample can look like the end of a line."""
    return "".join(
        json.dumps(
            {
                "prompt": sample.prompt,
                "sample": sample.number,
                "text": sample.text,
                "tokens": len(sample.completion.tokens),
                "logprob": round(sample.completion.logprob, 4),
                "seed": sample.seed,
                "finish": sample.completion.finish,
            }
        )
        + "\n"
        for sample in samples
    )


def measure_samples(samples: Sequence[Sample], stats: DecodingStats) -> dict[str, float]:
    """Return the metrics: counts, and how much the new tokens repeat themselves (distinct_1 to distinct_3).

    With draft tokens also how many tokens each forward pass gave a sample, and how many passes gave one, two, ...;
    without, each gives one.
    """
    texts = [sample.completion.tokens for sample in samples]
    distinct = {f"distinct_{n}": round(distinct_share(texts, n), 6) for n in (1, 2, 3)}
    drafting = {}
    if stats.drafted:
        drafting["tokens_per_forward"] = round(stats.tokens / stats.forwards, 6)
        drafting |= {f"forwards_of_{tokens}": count for tokens, count in sorted(stats.given.items())}
    return {"samples": len(samples), "tokens": sum(map(len, texts)), **distinct, **drafting}


def distinct_share(texts: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams of tokens over all of them (distinct-n: Li et al., arXiv:1510.03055); 0 where there is none.

    >>> distinct_share([[1, 2, 1, 2]], 2)
    0.6666666666666666
    """
    ngrams = [ngram for text in texts for ngram in zip(*(text[start:] for start in range(n)), strict=False)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0
