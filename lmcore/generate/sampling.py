"""The next token from its logits: temperature, top-k, top-p, and a seed of each sample's own."""

from collections import Counter
from collections.abc import Sequence

import torch
from pydantic import Field, field_validator
from torch import Tensor

from lmcore.params import Int, Section


class SampleParams(Section):
    """What the sample stage writes. Temperature 0 takes the likeliest token; an empty top_k or top_p is off."""

    prompts: list[str]
    samples_per_prompt: Int = Field(ge=1)
    max_new_tokens: Int = Field(ge=1)
    temperature: float = Field(ge=0.0)
    top_k: Int | None = Field(ge=1)
    top_p: float | None = Field(gt=0.0, le=1.0)
    seed: Int

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


def choose(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Draw a token for each row of `logits` (B, V), with that row's generator (on the CPU, whatever the device): (B,).

    In the order that Hugging Face applies them: temperature, top-k, top-p.
    """
    if temperature == 0:
        return logits.argmax(-1)
    # In float64, and shifted so that the largest is 0: no temperature, however small, makes an infinity of it.
    logits = logits.double()
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    cumulative = logits.softmax(-1).cumsum(-1)
    # One uniform draw a row, looked up in the cumulative distribution; `right` steps over tokens of probability 0.
    draws = torch.cat([torch.rand(1, 1, generator=generator, dtype=torch.float64) for generator in generators])
    return torch.searchsorted(cumulative, draws.to(logits.device) * cumulative[:, -1:], right=True).squeeze(1)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """All but the `k` largest of each row become -inf; what equals the k-th largest stays too."""
    threshold = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """All but the fewest likeliest tokens whose probabilities reach `p` become -inf, at least one stays.

    Nucleus sampling (Holtzman et al., arXiv:1904.09751).
    """
    ascending, order = logits.sort(dim=-1)
    drop = ascending.softmax(-1).cumsum(-1) <= 1 - p
    drop[:, -1] = False
    return logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
