"""The decoding step compiled for fixed shapes; it is fast from its second call on."""

from typing import Any

import torch
from torch import Tensor

from lmcore.model.gpt import GPT
from lmcore.model.kv_cache import CacheView, KeyValueCache
from lmcore.model.tidar import Layout


class CompiledStep:
    """The logits (B, T, V) after `tokens` (B, T), which follow the first `starts` (B,) tokens of the `cache`'s B rows.

    T is always the same, and so is the `layout` of the new tokens; without one they follow each other. Every position
    attends to all of the cache, so that no shape changes from step to step; on CUDA the step is one graph. The first
    call takes the time of the compilation: 5 s for 6 layers, 20 s for 12.
    """

    def __init__(self, model: GPT, cache: KeyValueCache, layout: Layout | None = None) -> None:
        def compute(tokens: Tensor, starts: Tensor) -> Tensor:
            extension = CacheView(cache, starts, tokens.shape[1], cache.capacity, layout=layout)
            return model.logits(model.hidden(tokens, extension))

        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        if model.token_embedding.weight.device.type == "cuda":
            options["triton.cudagraphs"] = True
            for store in (*cache.keys, *cache.values, cache.tokens):
                torch._dynamo.mark_static_address(store)
        # Evaluating the guards, about a hundred, takes a third of a millisecond per call. They are needed only to
        # choose among several compilations: with its own set of compilations, which holds one, a step can skip them.
        self._compute = torch.compile(  # type: ignore[call-overload]  # torch's overloads lack the last argument
            compute, dynamic=False, options=options, isolate_recompiles=True
        )
        self._shape: torch.Size | None = None

    def __call__(self, tokens: Tensor, starts: Tensor) -> Tensor:
        """See the class."""
        assert self._shape in (None, tokens.shape), (self._shape, tokens.shape)
        self._shape = tokens.shape
        logits: Tensor = self._compute(tokens, starts)
        return logits
