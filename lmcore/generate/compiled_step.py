"""The decoding step as one compiled function of fixed shapes, which is fast from its second call on."""

from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from lmcore.model.gpt import GPT
from lmcore.model.kv_cache import CacheView, KeyValueCache
from lmcore.model.tidar import Layout


class CompiledStep:
    """The scores (B, T, V) after `tokens` (B, T), which come after the first `starts` (B,) of the `cache`'s B rows.

    T is always the same, and so is the `layout` of the new tokens, one after the other without one.

    Every position looks at all of the cache, so that no shape changes from step to step; on CUDA the step is one graph.
    The first call takes the time of the compilation: 5 s for 6 layers, 20 s for 12.
    """

    def __init__(self, model: GPT, cache: KeyValueCache, layout: Layout | None = None) -> None:
        def compute(tokens: Tensor, starts: Tensor) -> Tensor:
            extension = CacheView(cache, starts, tokens.shape[1], cache.capacity, layout=layout)
            return model.logits(model.hidden(tokens, extension))

        # Which of a function's compilations fits is asked of a hundred guards at each call, a third of a millisecond. A
        # function of its own, which is called with these shapes alone, has one, and nothing to ask.
        alone = FunctionType(
            compute.__code__.replace(co_name=f"compute_{id(self)}"), globals(), "compute", None, compute.__closure__
        )
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        if model.token_embedding.weight.device.type == "cuda":
            options["triton.cudagraphs"] = True
            for store in (*cache.keys, *cache.values, cache.tokens):
                torch._dynamo.mark_static_address(store)
        self._compute = torch.compile(alone, dynamic=False, options=options)
        self._shape: torch.Size | None = None

    def __call__(self, tokens: Tensor, starts: Tensor) -> Tensor:
        """See the class."""
        assert self._shape in (None, tokens.shape), (self._shape, tokens.shape)
        self._shape = tokens.shape
        logits: Tensor = self._compute(tokens, starts)
        return logits
