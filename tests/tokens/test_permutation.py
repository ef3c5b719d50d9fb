"""A keyed permutation: a bijection, the key's alone, and without visible order."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.tokens.permutation import permute


def order(size: int, key: bytes = b"key") -> list[int]:
    return permute(np.arange(size), size, key).tolist()


@pytest.mark.parametrize("first", range(1, 2001, 400))
def test_every_small_size_is_a_bijection(first: int) -> None:
    for size in range(first, first + 400):
        assert sorted(order(size)) == list(range(size)), size


@given(size=st.integers(1, 10**10), key=st.binary(), data=st.data())
def test_any_size_stays_in_range_and_never_repeats(size: int, key: bytes, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), unique=True, min_size=1)))
    places = permute(index, size, key)
    assert len(set(places.tolist())) == len(index)
    assert 0 <= places.min() <= places.max() < size


@pytest.mark.parametrize("size", [10**10, 10**10 + 1, 2**32, 2**40 - 1])
def test_a_large_size_never_repeats_in_a_long_stretch(size: int) -> None:
    places = permute(np.arange(size - 200_000, size), size, b"key")
    assert len(np.unique(places)) == 200_000
    assert 0 <= places.min() <= places.max() < size


def test_elements_do_not_depend_on_their_company() -> None:
    index = np.array([999, 0, 5, 5])
    assert permute(index, 1000, b"k").tolist() == [order(1000, b"k")[i] for i in index]
    assert permute(index[:0], 1000, b"k").tolist() == []


def test_the_order_is_the_key_s() -> None:
    assert order(1000, b"1/0") == order(1000, b"1/0")
    assert order(1000, b"1/0") != order(1000, b"1/1")
    # Pinned: another order would silently be another training run.
    assert order(8, b"1/0") == [4, 0, 6, 2, 1, 7, 3, 5]


def chi_square(counts: np.ndarray) -> float:
    """In standard deviations from what equal chances give."""
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    return float((statistic - (counts.size - 1)) / math.sqrt(2 * (counts.size - 1)))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_order_of_a_few_is_equally_likely(size: int) -> None:
    orders = [tuple(order(size, b"%d" % key)) for key in range(3000)]
    counts = np.unique(np.array(orders), axis=0, return_counts=True)[1]
    assert len(counts) == math.factorial(size)
    assert chi_square(counts) < 4


@pytest.mark.parametrize("size", [5, 12, 31, 64])
def test_every_element_comes_everywhere_equally_often(size: int) -> None:
    orders = np.array([order(size, b"%d" % key) for key in range(3000)])
    for element in {0, 1, size // 2, size - 1}:
        assert chi_square(np.bincount(orders[:, element], minlength=size)) < 5


def test_neighbours_do_not_stay_neighbours() -> None:
    places = np.array(order(50_000))
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(places, np.arange(50_000))[0, 1]) < 0.02
    assert chi_square(np.bincount(np.diff(places) % 100, minlength=100)) < 5
