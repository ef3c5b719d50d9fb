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
    return _take_smallest(executor.map(sample_sequences, parts))


def measure_overlaps(
    samples: Mapping[str, Hashes], text: Sequence[Readable], place: Path, executor: Executor
) -> dict[str, float]:
    """Of each sample of sequences the share that occurs in `text` too; 0 of none.

    Memory does not grow with the text. The standard error of the sampling is below 0.0005. The samples lie in the
    folder `place` meanwhile.
    """
    sought = _sort_distinct(np.concatenate([*samples.values()]))
    save_array(place / "sought.npy", sought)
    found = np.zeros(len(sought), bool)
    for bits in executor.map(partial(find_sequences, path=place / "sought.npy"), text):
        found |= np.unpackbits(bits, count=len(found)).astype(bool)
    return {
        name: float(np.count_nonzero(found[np.searchsorted(sought, sample)]) / max(1, len(sample)))
        for name, sample in samples.items()
    }


def sample_sequences(part: Readable) -> Hashes:
    """The smallest hashes of sequences in `part`, at most SEQUENCE_SAMPLE, sorted."""
    return _take_smallest(_iterate_hashes(part.read()))


def _take_smallest(arrays: Iterable[Hashes]) -> Hashes:
    """The smallest distinct hashes, at most SEQUENCE_SAMPLE, sorted; memory holds two or three times as many."""
    sample: Hashes = np.empty(0, np.uint64)
    candidates = (some if len(sample) < SEQUENCE_SAMPLE else some[some < sample[-1]] for some in arrays)
    for hashes in _gather(candidates, SEQUENCE_SAMPLE):  # to sort all of them for each few took most of the time
        sample = _sort_distinct(np.concatenate([sample, hashes]))[:SEQUENCE_SAMPLE]
    return sample


def find_sequences(part: Readable, *, path: Path) -> NDArray[np.uint8]:
    """Which of the hashes in the file `path`, sorted and distinct, are of sequences in `part`, a bit for each."""
    sought: Hashes = np.load(path)
    begins = np.zeros(1 << BEGIN_BITS, bool)
    begins[sought >> BEGIN_SHIFT] = True
    found = np.zeros(len(sought), bool)
    candidates = (some[begins[some >> BEGIN_SHIFT]] for some in _iterate_hashes(part.read()))
    for hashes in map(np.sort, _gather(candidates, LOOK_UP_AT_ONCE)):
        places = np.minimum(np.searchsorted(sought, hashes), len(sought) - 1)
        found[places[sought[places] == hashes]] = True
    return np.packbits(found)


def _gather(arrays: Iterable[Hashes], count: int) -> Iterator[Hashes]:
    """The hashes in arrays of at least `count`, but for the last, which may be empty."""
    waiting, size = [np.empty(0, np.uint64)], 0
    for array in arrays:
        waiting.append(array)
        size += len(array)
        if size >= count:
            yield np.concatenate(waiting)
            waiting, size = waiting[:1], 0
    yield np.concatenate(waiting)


def _sort_distinct(hashes: Hashes) -> Hashes:
    """What np.unique gives, whose hash table takes 1.5 s for a million of these."""
    ascending = np.sort(hashes)
    is_first = np.append(True, ascending[1:] != ascending[:-1])[: len(hashes)]
    distinct: Hashes = ascending[is_first]
    return distinct


def _iterate_hashes(batches: Iterable[list[str]]) -> Iterator[Hashes]:
    """The hashes of all sequences, RUN_CHARACTERS or so at a time: numpy is slow on many short texts."""
    runs, size = list[bytes](), 0
    for run in (run for texts in batches for text in texts for run in split_runs(text, SEQUENCE_WORDS)):
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
        run = text[begin:end].encode()
        if len(run) > WORD_BYTES and len(word := run.rsplit(None, 1)[-1]) > WORD_BYTES:
            run = run[: run.rindex(word)] + blake2b(word, digest_size=16).hexdigest().encode()
        run = overlap + run
        yield run
        begin, overlap = end, b" ".join(run.rsplit(None, words - 1)[1 - words :])


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
