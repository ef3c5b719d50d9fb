"""How the training windows are dealt out to the sources by their weights: a pure function of the seed and the place."""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lmcore.tokens.permutation import permute

BLOCK = 1024  # windows within which the sources alternate in a drawn order


class Mixture:
    """Deals out the windows of a run, numbered from 0, to sources by their weights, BLOCK of them at a time.

    After every block each source has its share of all windows so far, rounded, and the one of the largest weight has
    what the others leave: it is off by half a window for each of them at most, however long the run.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        exact = [Fraction(repr(weight)) for weight in weights]  # 0.7 as it is written
        self.shares = [weight / sum(exact) for weight in exact]
        self._largest = self.shares.index(max(self.shares))
        self._seed = seed
        self._block = lru_cache(maxsize=2)(self._deal_block)

    def count(self, windows: int) -> list[int]:
        """How many of the first `windows` windows each source has."""
        block, rest = divmod(windows, BLOCK)
        sources, _ = self.deal(block * BLOCK, rest)
        there = np.bincount(sources, minlength=len(self.shares)).tolist()
        return [before + more for before, more in zip(self._count_blocks(block), there, strict=True)]

    def deal(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of windows `first` to `first + count`: the number of the source, and which of the source's it is, (count,).

        Each source's own are numbered from 0 without gaps, in order.
        """
        if len(self.shares) == 1:
            return np.zeros(count, np.int64), np.arange(first, first + count)
        blocks = range(first // BLOCK, math.ceil((first + count) / BLOCK))
        dealt = [np.empty((2, 0), np.int64), *map(self._block, blocks)]
        here = np.concatenate(dealt, axis=1)[:, first % BLOCK : first % BLOCK + count]
        return here[0], here[1]

    def _deal_block(self, block: int) -> NDArray[np.int64]:
        """`deal` of one whole block, (2, BLOCK)."""
        before = np.array(self._count_blocks(block))
        counts = np.array(self._count_blocks(block + 1)) - before
        places = permute(np.arange(BLOCK), BLOCK, f"{self._seed}/mixture/{block}".encode())
        sources = np.searchsorted(np.cumsum(counts), places, side="right")
        by_source = np.argsort(sources, kind="stable")
        numbers = np.empty(BLOCK, np.int64)
        numbers[by_source] = np.arange(BLOCK) + np.repeat(before - (np.cumsum(counts) - counts), counts)
        return np.stack([sources, numbers])

    def _count_blocks(self, blocks: int) -> list[int]:
        """How many windows of the first `blocks` blocks each source has."""
        counts = [round(share * blocks * BLOCK) for share in self.shares]
        counts[self._largest] += blocks * BLOCK - sum(counts)
        return counts
