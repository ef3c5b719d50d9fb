"""Which tokens each step trains on, and which the evaluation sees: pure functions, no state."""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lmcore.errors import DataError
from lmcore.tokens.order import permute
from lmcore.tokens.shards import TokenShards

STEPS_AT_ONCE = 32


class Batches:
    """Training batches without replacement: each epoch visits every window of the split once, in its own order.

    Window w holds the stream's tokens [w C, w C + C], C + 1 of them, so that C are targets; its last token is the next
    window's first input. Every epoch after the first shifts all windows by an offset of its own below C, so that a
    repeated text is not cut at the same places; the last window stays within the text. The tokens before the first
    window and after the last are not trained on.
    """

    def __init__(self, shards: TokenShards, batch_size: int, context_length: int, seed: int) -> None:
        if shards.tokens < context_length:
            raise DataError(
                f"the {shards.split} split has {shards.tokens} tokens, fewer than one window of "
                f"model.context_length={context_length}: use more text or a shorter context"
            )
        self.shards, self.batch_size, self.context_length, self.seed = shards, batch_size, context_length, seed
        self.windows = shards.tokens // context_length
        self.tokens_per_step = batch_size * context_length
        # One permutation costs about the same for sixteen windows as for five hundred.
        self._starts_of = lru_cache(maxsize=2)(self._choose_starts)

    def at(self, step: int) -> NDArray[np.int64]:
        """The batch of `step`, (batch_size, context_length + 1): inputs are [:, :-1], targets are [:, 1:].

        A pure function of the seed and the step. An epoch ends wherever its windows do, also within a batch.
        """
        block, place = divmod(step, STEPS_AT_ONCE)
        starts = self._starts_of(block)[place]  # (batch_size,)
        return self.shards.read_windows(starts.tolist(), self.context_length + 1)

    def _choose_starts(self, block: int) -> NDArray[np.int64]:
        """Where the windows of each step in a block of steps begin, (STEPS_AT_ONCE, batch_size)."""
        count = STEPS_AT_ONCE * self.batch_size
        epochs, places = np.divmod(np.arange(block * count, (block + 1) * count), self.windows)
        starts = np.empty_like(places)
        last = self.shards.tokens - self.context_length
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            # The pair is hashed: with seed + epoch, one run's second epoch would be another run's first.
            key = f"{self.seed}/{epoch}".encode()
            offset = permute(np.zeros(1), self.context_length, key) if epoch else 0
            starts[here] = permute(places[here], self.windows, key) * self.context_length + offset
        return np.minimum(starts, last).reshape(STEPS_AT_ONCE, self.batch_size)


def fixed_windows(shards: TokenShards, context_length: int, count: int | None) -> Iterator[NDArray[np.int64]]:
    """Evaluation windows of at most context_length + 1 tokens, always the same ones: all, or `count` evenly spread.

    They overlap by one token, so over all of them each real token is a target exactly once; the last may be shorter.
    """
    total = math.ceil(shards.tokens / context_length)
    chosen = total if count is None else min(count, total)
    for window in range(chosen):
        start = window * total // chosen * context_length
        yield shards.read(start, min(context_length + 1, len(shards) - start))
