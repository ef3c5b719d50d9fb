"""Samples as a page to read, as lines for programs, and as numbers."""

import json
import re
from collections.abc import Sequence
from itertools import groupby

from lmcore.generate.decoder import Tally
from lmcore.generate.params import SampleParams
from lmcore.generate.samples import Sample
from lmcore.generate.text_stream import Finish

ENDINGS: dict[Finish, str] = {
    "length": "at the length asked for",
    "end_of_text": "at its end of text",
    "stop": "before a stop string",
}


def render_markdown(params: SampleParams, samples: Sequence[Sample]) -> str:
    """The settings, then each prompt with its samples, every text in a fenced block that it cannot close."""
    settings = params.model_dump(exclude={"prompts"})
    lines = ["# Samples", "", "| setting | value |", "|---|---|"]
    lines += [f"| {name} | {'' if value is None else value} |" for name, value in settings.items()]
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


def measure_samples(samples: Sequence[Sample], tally: Tally) -> dict[str, float]:
    """Metrics: counts, and how much the new tokens repeat themselves (distinct_1 to distinct_3).

    With drafts also how many tokens each forward pass gave a sample, and how many passes gave one, two, ...; without,
    each gives one.
    """
    texts = [sample.completion.tokens for sample in samples]
    distinct = {f"distinct_{n}": round(distinct_share(texts, n), 6) for n in (1, 2, 3)}
    drafting = {}
    if tally.drafted:
        drafting["tokens_per_forward"] = round(tally.tokens / tally.forwards, 6)
        drafting |= {f"forwards_of_{tokens}": count for tokens, count in sorted(tally.given.items())}
    return {"samples": len(samples), "tokens": sum(map(len, texts)), **distinct, **drafting}


def distinct_share(texts: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams of tokens over all of them (distinct-n: Li et al., arXiv:1510.03055); 0 where there is none.

    >>> distinct_share([[1, 2, 1, 2]], 2)
    0.6666666666666666
    """
    ngrams = [ngram for text in texts for ngram in zip(*(text[start:] for start in range(n)), strict=False)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0
