"""The keys and values of texts so far, so that each new token costs one step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lmcore.model.tidar import Layout


class KeyValueCache:
    """Pre-allocated keys and values of every layer, (batch, capacity, key-value heads, head width) each.

    Only a store: how much of a row is a text is for the caller to know, who says where each row goes on (`extend`).
    What lies behind that place is written over, and nothing sees it before; to forget is to go on from further left.
    A model with a document mask keeps the tokens here too: they say where documents begin.
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
        # A tensor for each layer: writing into a part of a larger one makes a compiled step copy all of that.
        shape = (batch, capacity, kv_heads, head_width)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(n_layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(n_layers)]
        self.tokens = torch.zeros(batch, capacity, device=device, dtype=torch.int64)
        self.capacity = capacity

    def extend(self, starts: Sequence[int], time: int, first_row: int = 0, layout: Layout | None = None) -> "CacheView":
        """Room for `time` tokens after the first `starts[i]` of row `first_row` + i, which stay as they are.

        With a `layout` they have its positions and see by its rules. Those that are no part of the text come last, and
        the next extension writes over them.
        """
        window = max(starts) + time
        assert window <= self.capacity, (window, self.capacity)
        is_plain = layout is None and min(starts) == max(starts) and (time == 1 or not starts[0])
        places = torch.tensor(starts, device=self.tokens.device)
        return CacheView(self, places, time, window, first_row, layout, is_plain=is_plain)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Make the first `length` tokens of row `target` those of row `source`."""
        for store in (*self.keys, *self.values, self.tokens):
            store[target, :length] = store[source, :length]


class CacheView:
    """An argument of the model's forward, never a part of it: where new tokens go, and what they see.

    They are at `positions` (B, T) of their texts, in as many rows from `first_row` on, and see among the first `window`
    what `mask` (B, 1, T, window) says, None if `is_plain`, where plain causal attention says the same.
    """

    def __init__(
        self,
        cache: KeyValueCache,
        starts: Tensor,
        time: int,
        window: int,
        first_row: int = 0,
        layout: Layout | None = None,
        *,
        is_plain: bool = False,
    ) -> None:
        self.window, self._layout, self._starts = window, layout, starts
        self._cache, self._rows = cache, slice(first_row, first_row + len(starts))
        places = starts[:, None] + torch.arange(time, device=starts.device)
        self.positions = places if layout is None else starts[:, None] + layout.offsets
        rows = torch.arange(first_row, first_row + len(starts), device=starts.device)
        self._places = (rows[:, None], places)
        self.mask = None if is_plain else self._find_mask()

    def _find_mask(self) -> Tensor:
        """What each new token sees, (B, 1, T, window)."""
        keys = torch.arange(self.window, device=self._starts.device)
        if self._layout is None:
            return keys <= self.positions[:, None, :, None]
        since = keys - self._starts[:, None]  # (B, window), of the new tokens from 0 on
        sees, count = self._layout.sees, len(self._layout.sees)
        new = sees[:, since.clamp(0, count - 1)].transpose(0, 1)  # (B, T, window)
        is_new = (since >= 0) & (since < count)
        return ((since < 0)[:, None] | (is_new[:, None] & new))[:, None]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new (B, K, T, W) of a layer; return all that its queries may look at, (B, K, window, W)."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys.index_put_(self._places, key.transpose(1, 2))
        values.index_put_(self._places, value.transpose(1, 2))
        return keys[self._rows, : self.window].transpose(1, 2), values[self._rows, : self.window].transpose(1, 2)

    def mask_documents(self, tokens: Tensor, end_of_text: int) -> Tensor:
        """Write `tokens` (B, T); of `mask`, (B, 1, T, window), what belongs to the document of who looks."""
        self._cache.tokens.index_put_(self._places, tokens)
        opens = self._cache.tokens[self._rows, : self.window] == end_of_text
        documents, places = opens.cumsum(dim=1, dtype=torch.int32), self._places[1]
        if self._layout is not None:  # not one after the other: a token is in the document that what it sees has opened
            old = torch.arange(self.window, device=tokens.device) < self._starts[:, None]
            new = (tokens == end_of_text).float() @ self._layout.sees.float().T
            before = (opens & old).sum(dim=1, keepdim=True)
            documents = documents.scatter(1, places, (before + new).to(torch.int32))
        same = documents.gather(1, places)[:, :, None] == documents[:, None, :]
        return same[:, None] & (self._find_mask() if self.mask is None else self.mask)
