"""Which tokens each step trains on, and which the evaluation sees: pure functions, no state."""

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lmcore.errors import ParameterError, suggest
from lmcore.tokens.mixture import Mixture
from lmcore.tokens.permutation import permute
from lmcore.tokens.shards import TokenShards, TokenSource
from lmcore.tokens.windows import Packing, open_windows

WINDOWS_AT_ONCE = 1024  # about: one permutation costs hardly more for a thousand windows than for sixteen
EVERYTHING = ""  # the name of all sources as one


class Batches:
    """Training batches without replacement: each epoch visits every window of a source once, in its own order.

    Without `mixture` (weights by the sources' names) the whole split is one source. `packing` and `jitter` say where
    windows begin: see `StreamWindows` and `DocumentWindows`.

    Raises ParameterError for a source that the split has not, DataError for one without a window.
    """

    def __init__(
        self,
        shards: TokenShards,
        batch_size: int,
        context_length: int,
        seed: int,
        *,
        packing: Packing = "stream",
        jitter: bool = True,
        mixture: Mapping[str, float] | None = None,
    ) -> None:
        self.shards, self.batch_size, self.context_length, self.seed = shards, batch_size, context_length, seed
        self.sources = choose_sources(shards, mixture)
        self.windows = [open_windows(shards, source, context_length, packing, jitter=jitter) for source in self.sources]
        self.mixture = Mixture([1] if mixture is None else [mixture[source.name] for source in self.sources], seed)
        self.packing = packing
        self.tokens_per_step = batch_size * context_length
        self._steps_at_once = max(1, WINDOWS_AT_ONCE // batch_size)
        self._starts_of = lru_cache(maxsize=2)(self._choose_starts)

    @property
    def tokens(self) -> int:
        """Tokens of one pass over every source."""
        return sum(windows.tokens for windows in self.windows)

    @property
    def figures(self) -> dict[str, int]:
        """What the metrics say of the text beside the loss: `lost_tokens`, where windows begin at documents."""
        if self.packing == "stream":
            return {}
        return {"lost_tokens": sum(windows.lost_tokens for windows in self.windows)}

    def at(self, step: int) -> NDArray[np.int64]:
        """The batch of `step`, (batch_size, context_length + 1): inputs are [:, :-1], targets are [:, 1:].

        A pure function of the seed and the step. An epoch ends wherever its windows do, also within a batch.
        """
        block, place = divmod(step, self._steps_at_once)
        starts = self._starts_of(block)[place]  # (batch_size,)
        return self.shards.read_windows(starts.tolist(), self.context_length + 1)

    def _choose_starts(self, block: int) -> NDArray[np.int64]:
        """Where the windows of each step in a block of steps begin, (steps, batch_size)."""
        count = self._steps_at_once * self.batch_size
        dealt, numbers = self.mixture.deal(block * count, count)
        starts = np.empty_like(numbers)
        for source in np.unique(dealt).tolist():
            windows, name = self.windows[source], self.sources[source].name
            epochs, places = np.divmod(numbers, windows.count)
            for epoch in np.unique(epochs[dealt == source]).tolist():
                here = (dealt == source) & (epochs == epoch)
                # The whole is hashed: with seed + epoch, one run's second epoch would be another run's first.
                key = f"{self.seed}/{epoch}{name and '/'}{name}".encode()
                starts[here] = windows.find(permute(places[here], windows.count, key), key if epoch else None)
        return starts.reshape(self._steps_at_once, self.batch_size)

    def describe(self, steps: int) -> Iterator[str]:
        """What of the text `steps` steps see where that is not all of it alike, a line for each fact."""
        if lost := self.figures.get("lost_tokens"):
            whole = lost + self.tokens
            yield f"windows begin at documents: {lost:,} of {whole:,} tokens ({lost / whole:.1%}) are not trained on"
        trained = [source.name for source in self.sources]
        if trained == [EVERYTHING]:
            return
        left = [
            f"{source.name} ({source.tokens:,} tokens)" for source in self.shards.sources if source.name not in trained
        ]
        if left:
            yield f"train.mixture does not name {', '.join(left)}: not trained on"
        counts = self.mixture.count(steps * self.batch_size)
        for source, share, windows, count in zip(self.sources, self.mixture.shares, self.windows, counts, strict=True):
            tokens = count * self.context_length
            yield (
                f"source {source.name}: share {float(share):.2%}, {tokens:,} tokens, {tokens / windows.tokens:.2f} "
                f"passes over its {windows.tokens:,}"
            )


def choose_sources(shards: TokenShards, mixture: Mapping[str, float] | None) -> list[TokenSource]:
    """The stretches of the stream to train on, those that `mixture` names in the stream's order.

    Raises ParameterError for a name that is none.
    """
    if mixture is None:
        return [TokenSource(EVERYTHING, 0, len(shards))]
    known = [source.name for source in shards.sources]
    for name in mixture:
        if name not in known:
            raise ParameterError(
                f"train.mixture.{name}={mixture[name]:g}: the text has no such source:{suggest(name, known)} it has "
                f"{', '.join(known)}"
            )
    return [source for source in shards.sources if source.name in mixture]


def fixed_windows(shards: TokenShards, context_length: int, count: int | None) -> Iterator[NDArray[np.int64]]:
    """Evaluation windows of at most context_length + 1 tokens, always the same ones: all, or `count` evenly spread.

    They overlap by one token, so over all of them each real token is a target exactly once; the last may be shorter.
    """
    for start in fixed_starts(shards, context_length, count):
        yield shards.read(start, min(context_length + 1, len(shards) - start))


def fixed_starts(shards: TokenShards, context_length: int, count: int | None) -> Iterator[int]:
    """Where each of the `fixed_windows` begins in the stream."""
    total = math.ceil(shards.tokens / context_length)
    chosen = total if count is None else min(count, total)
    for window in range(chosen):
        yield window * total // chosen * context_length
