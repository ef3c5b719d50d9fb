"""The keys and values of a text so far, so that each new token costs one step."""

import torch
from torch import Tensor


class KeyValueCache:
    """Pre-allocated keys and values of every layer, (batch, key-value heads, capacity, head width) each.

    An argument of the model's forward, never a part of it: `append` writes a layer's new entries, `advance` commits
    them once all layers have, `crop` forgets the end, `mask` says what the new tokens may see. A model with a document
    mask keeps the tokens here too (`add_tokens`): they say where documents begin.
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_width: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (n_layers, batch, kv_heads, capacity, head_width)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.tokens = torch.zeros(batch, capacity, device=device, dtype=torch.int64)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write (batch, heads, time, width) after the committed entries; return all of this layer's."""
        end = self.length + key.shape[2]
        assert end <= self.capacity, (end, self.capacity)
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def add_tokens(self, tokens: Tensor) -> Tensor:
        """Write `tokens` (batch, time) after the committed ones; return all of them."""
        end = self.length + tokens.shape[1]
        self.tokens[:, self.length : end] = tokens
        return self.tokens[:, :end]

    def advance(self, time: int) -> None:
        """Commit `time` tokens, which every layer has appended."""
        self.length += time

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        assert 0 <= length <= self.length, (length, self.length)
        self.length = length

    def mask(self, time: int) -> Tensor | None:
        """What `time` new tokens may see, (time, length + time); None where plain causal attention says the same."""
        if self.length == 0 or time == 1:
            return None
        return torch.ones(time, self.length + time, dtype=torch.bool, device=self.keys.device).tril(self.length)
