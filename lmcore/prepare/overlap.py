"""How much of one text occurs word for word in another: validation in the training text, a benchmark in it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lmcore.files import save_array
from lmcore.runtime.process_pool import Executor

SEQUENCE_WORDS = 13  # GPT-3's measure of contamination (Brown et al. 2020, appendix C)
SEQUENCE_SAMPLE = 1 << 20  # of validation's sequences: all of them in a validation text below some 5 MB
RUN_CHARACTERS = 1 << 17  # the arrays for a run fit into a core's cache: 1.3 times as fast as a million
WORD_BYTES = 4 * RUN_CHARACTERS  # a longer word has more characters than a run, and so ends one
LOOK_UP_AT_ONCE = 1 << 19  # sorted, so many go through the sample in its order, where few would jump about in it
BEGIN_BITS = 24  # of a hash, by which most of those that nobody seeks are known
BEGIN_SHIFT = np.uint64(64 - BEGIN_BITS)
BLANK = re.compile(r"[ \t\n\r\v\f]")  # what bytes.split() splits at
IS_BLANK = np.isin(np.arange(256), list(b" \t\n\r\v\f"))
BASE = 0x9E3779B97F4A7C15  # odd, and without pattern: 2**64 divided by the golden ratio
Hashes = NDArray[np.uint64]


class Readable(Protocol):
    """Some texts, which one process reads at a time; it can be pickled."""

    def read(self) -> Iterator[list[str]]:
        """The texts, a batch at a time."""


def collect_sequences(parts: Sequence[Readable], executor: Executor) -> Hashes:
    """The hashes of the distinct sequences of 13 words, sorted: the smallest of many, which is a fair sample."""
    smallest = Smallest()
    for hashes in executor.map(sample_sequences, parts):
        smallest.add(hashes)
    return smallest.take()


def measure_overlaps(
    samples: Mapping[str, Hashes], text: Sequence[Readable], place: Path, executor: Executor
) -> dict[str, float]:
    """Of each sample of sequences the share that occurs in `text` too; 0 of none.

    Memory does not grow with the text. The standard error of the sampling is below 0.0005. The samples lie in the
    folder `place` meanwhile.
    """
    paths = {name: place / f"{name}.npy" for name in samples}
    for name, sample in samples.items():
        save_array(paths[name], sample)
    found = {name: np.zeros(len(sample), bool) for name, sample in samples.items()}
    for marks in executor.map(partial(find_sequences, samples=paths), text):
        for name, bits in marks.items():
            found[name] |= np.unpackbits(bits, count=len(found[name])).astype(bool)
    return {name: float(np.count_nonzero(marks) / max(1, len(marks))) for name, marks in found.items()}


def sample_sequences(part: Readable) -> Hashes:
    """The smallest hashes of sequences in `part`, at most SEQUENCE_SAMPLE, sorted."""
    smallest = Smallest()
    for hashes in _iterate_hashes(part.read()):
        smallest.add(hashes)
    return smallest.take()


class Smallest:
    """The smallest distinct hashes of many, at most SEQUENCE_SAMPLE; memory holds two or three times as many."""

    def __init__(self) -> None:
        self._sample: Hashes = np.empty(0, np.uint64)
        self._waiting: list[Hashes] = []
        self._waiting_count = 0

    def add(self, hashes: Hashes) -> None:
        """Some more, in any order."""
        if len(self._sample) == SEQUENCE_SAMPLE:
            hashes = hashes[hashes < self._sample[-1]]
        self._waiting.append(hashes)
        self._waiting_count += len(hashes)
        if self._waiting_count >= SEQUENCE_SAMPLE:  # to sort all of them for each few took most of the time
            self.take()

    def take(self) -> Hashes:
        """Those that are the smallest so far, sorted."""
        self._sample = _sort_distinct(np.concatenate([self._sample, *self._waiting]))[:SEQUENCE_SAMPLE]
        self._waiting, self._waiting_count = [], 0
        return self._sample


def find_sequences(part: Readable, *, samples: Mapping[str, Path]) -> dict[str, NDArray[np.uint8]]:
    """Which of the sequences in the files `samples` occur in `part`, a bit for each."""
    searches = {name: Search(np.load(path)) for name, path in samples.items()}
    for hashes in _iterate_hashes(part.read()):
        for search in searches.values():
            search.add(hashes)
    return {name: np.packbits(search.take()) for name, search in searches.items()}


class Search:
    """Which of the `sought` hashes, sorted and distinct, have been seen."""

    def __init__(self, sought: Hashes) -> None:
        self._sought, self._found = sought, np.zeros(len(sought), bool)
        self._begins = np.zeros(1 << BEGIN_BITS, bool)
        self._begins[sought >> BEGIN_SHIFT] = True
        self._waiting: list[Hashes] = []
        self._waiting_count = 0

    def add(self, hashes: Hashes) -> None:
        """See these hashes, in any order."""
        self._waiting.append(hashes[self._begins[hashes >> BEGIN_SHIFT]])
        self._waiting_count += len(self._waiting[-1])
        if self._waiting_count >= LOOK_UP_AT_ONCE:
            self.take()

    def take(self) -> NDArray[np.bool_]:
        """A mark for each that was seen so far."""
        hashes = np.sort(np.concatenate([np.empty(0, np.uint64), *self._waiting]))
        self._waiting, self._waiting_count = [], 0
        places = np.minimum(np.searchsorted(self._sought, hashes), len(self._sought) - 1)
        self._found[places[self._sought[places] == hashes]] = True
        return self._found


def _sort_distinct(hashes: Hashes) -> Hashes:
    """What np.unique gives, whose hash table takes 1.5 s for a million of these."""
    ascending = np.sort(hashes)
    is_first = np.append(True, ascending[1:] != ascending[:-1])[: len(hashes)]
    distinct: Hashes = ascending[is_first]
    return distinct


def _iterate_hashes(batches: Iterable[list[str]]) -> Iterator[Hashes]:
    """The hashes of all sequences, RUN_CHARACTERS or so at a time: numpy is slow on many short texts."""
    runs, size = list[bytes](), 0
    for texts in batches:
        for text in texts:
            for run in split_runs(text, SEQUENCE_WORDS):
                runs.append(run)
                size += len(run)
                if size >= RUN_CHARACTERS:
                    yield hash_sequences(runs, SEQUENCE_WORDS)
                    runs, size = [], 0
    yield hash_sequences(runs, SEQUENCE_WORDS)


def split_runs(text: str, words: int) -> Iterator[bytes]:
    """The text as UTF-8 in runs of about RUN_CHARACTERS, each of whole words.

    A word of more than WORD_BYTES is there as its digest: a text without blanks may be as long as a document. A run
    repeats all but one of the last `words` of the one before: so many in a row lie together in exactly one run.
    """
    begin, overlap = 0, b""
    while begin < len(text):
        blank = BLANK.search(text, begin + RUN_CHARACTERS)
        end = blank.start() if blank else len(text)
        run = overlap + shorten_last(text[begin:end].encode())
        yield run
        begin, overlap = end, b" ".join(run.rsplit(None, words - 1)[1 - words :])


def shorten_last(run: bytes) -> bytes:
    """The run with its digest in place of a last word that is too long."""
    if len(run) <= WORD_BYTES:
        return run
    word = run.rsplit(None, 1)[-1]
    if len(word) <= WORD_BYTES:
        return run
    return run[: run.rindex(word)] + blake2b(word, digest_size=16).hexdigest().encode()


def hash_sequences(runs: list[bytes], words: int) -> Hashes:
    """A 64-bit hash for every so many `words` in a row within a run, whatever blanks part them; the same anywhere.

    A polynomial hash by prefix sums: bytes t[b:e] have (prefix[e] - prefix[b]) / BASE**b = sum t[i] * BASE**(i - b),
    all modulo 2**64, where an odd BASE has an inverse.
    """
    text = np.frombuffer(b"".join(run + b" " for run in runs), np.uint8)
    blank = IS_BLANK[text]
    after_blank = np.append(True, blank[:-1])
    run_ends = np.cumsum([len(run) + 1 for run in runs])
    runs_of_words = np.searchsorted(run_ends, np.flatnonzero(after_blank & ~blank), side="right")
    text = np.where(blank, ord(" "), text)[~(blank & after_blank)]  # one space after every word
    ends = np.flatnonzero(text == ord(" "))
    begins = np.append(0, ends[:-1] + 1)
    first = np.flatnonzero(runs_of_words[: 1 - words] == runs_of_words[words - 1 :])
    begins, ends = begins[first], ends[first + words - 1]
    prefix = np.append(np.uint64(0), np.cumsum(text * _powers(BASE, len(text))))
    hashes = (prefix[ends] - prefix[begins]) * _powers(pow(BASE, -1, 2**64), len(text))[begins]
    # A sample by size needs good high bits.
    mixed: Hashes = (hashes ^ hashes >> np.uint64(32)) * np.uint64(BASE)
    return mixed


def _powers(base: int, count: int) -> Hashes:
    """base**0, base**1, ... modulo 2**64, `count` of them."""
    return _powers_up_to(base, 1 << count.bit_length())[:count]


@lru_cache(maxsize=4)
def _powers_up_to(base: int, count: int) -> Hashes:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)
