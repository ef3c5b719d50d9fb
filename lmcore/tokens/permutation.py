"""A shuffled order of any length that costs no memory: a keyed permutation."""

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6


def permute(index: NDArray[Any], size: int, key: bytes) -> NDArray[np.int64]:
    """Where `key`'s order of `size` things has each `index`: a bijection of [0, size), computed element by element.

    A generalised Feistel network (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): the index becomes
    (left, right) on a grid just large enough, each round adds a keyed hash of one half to the other, and what lands
    outside [0, size) goes round again.
    """
    assert size > 0, size
    assert not len(index) or 0 <= index.min() <= index.max() < size, (index.min(), index.max(), size)
    keys = np.frombuffer(hashlib.blake2b(key, digest_size=8 * ROUNDS).digest(), dtype="<u8")
    height = np.uint64(math.isqrt(size - 1) + 1)  # the square root, rounded up
    width = np.uint64(-(-size // int(height)))
    places = _encipher(index.astype(np.uint64), height, width, keys)
    while (outside := places >= size).any():
        places[outside] = _encipher(places[outside], height, width, keys)
    return places.astype(np.int64)


def _encipher(
    index: NDArray[np.uint64], height: np.uint64, width: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """One pass of the network: a bijection of [0, height * width)."""
    left, right = np.divmod(index, width)  # in [0, height) and [0, width)
    for turn in range(0, ROUNDS, 2):
        left = (left + _hash(right, keys[turn])) % height
        right = (right + _hash(left, keys[turn + 1])) % width
    result: NDArray[np.uint64] = left * width + right
    return result


def _hash(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """32 well-mixed bits: two rounds of the multiplication and shift of SplitMix64's finaliser."""
    mixed = (values ^ key) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
    result: NDArray[np.uint64] = mixed >> np.uint64(32)
    return result
