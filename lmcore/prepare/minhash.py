"""Documents that are almost the same: MinHash signatures and locality-sensitive hashing, by datasketch.

Broder, "On the resemblance and containment of documents" (1997); the way of GPT-3's appendix A, Gopher and SlimPajama.
"""

from typing import Any

import numpy as np

from lmcore.prepare.overlap import hash_sequences, split_runs

SEQUENCE_WORDS = 5
SEED, SCHEME = 1, "affine32"  # of the permutations
PERMUTATIONS = 128  # the standard error of a similarity of 0.8 is 0.035
# A candidate that is not similar costs a comparison, one that is missed stays: of pairs just as similar as asked 98 %
# are found, with equal weights 40 %.
WEIGHTS = (0.02, 0.98)
GREATEST_THRESHOLD = 0.95  # of the index: it has no bands for 0.998 and more, and candidates are compared anyway
SEQUENCES_AT_ONCE = 1 << 14  # whose permutations, 512 bytes each, are in memory


def sign(text: str) -> bytes:
    """The signature of `text`, from which the share of common sequences of 5 words can be estimated.

    Empty for a text of fewer words.
    """
    from datasketch import MinHash  # takes 0.3 s, and few look for near duplicates

    sketch = MinHash(PERMUTATIONS, seed=SEED, hashfunc=int, scheme=SCHEME)
    is_empty = True
    for run in split_runs(text, SEQUENCE_WORDS):
        hashes = np.unique(hash_sequences([run], SEQUENCE_WORDS) >> np.uint64(32)).tolist()
        for start in range(0, len(hashes), SEQUENCES_AT_ONCE):
            is_empty = False
            sketch.update_batch(hashes[start : start + SEQUENCES_AT_ONCE])
    return b"" if is_empty else sketch.hashvalues.tobytes()


class NearDuplicates:
    """Which earlier document a text is almost the same as: at least `similarity` of their sequences are common.

    Memory holds the signature of every document that is not: some 7 KB each.
    """

    def __init__(self, similarity: float) -> None:
        from datasketch import LeanMinHash, MinHashLSH

        self._read = LeanMinHash
        self._similarity = similarity
        self._index = MinHashLSH(min(similarity, GREATEST_THRESHOLD), PERMUTATIONS, weights=WEIGHTS)
        self._known: list[tuple[str, Any]] = []  # the names with their sketches, by their places in the index

    def find(self, name: str, signature: bytes) -> str | None:
        """The name of the first document that this one is almost the same as; None makes this one known."""
        if not signature:
            return None
        sketch = self._read(seed=SEED, hashvalues=np.frombuffer(signature, np.uint32), scheme=SCHEME)
        for place in sorted(map(int, self._index.query(sketch))):
            known, other = self._known[place]
            if sketch.jaccard(other) >= self._similarity:
                return known
        self._index.insert(len(self._known), sketch)
        self._known.append((name, sketch))
        return None
