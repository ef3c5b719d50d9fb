"""Byte-level byte-pair encoding: fitted by tokenizers, encoded by tiktoken from the same ranks."""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from lmcore.runtime.process_pool import count_cores
from lmcore.tokenizer.base import END_OF_TEXT, Ids, Tokenizer, TokenizerKind, define, read_special, write_definition
from lmcore.tokenizer.byte import BYTE_LEVEL, SYMBOLS, read_symbols, write_symbols


def write_pattern(digits: int) -> str:
    """Where merges stop: GPT-4's split (tiktoken's cl100k_base) with numbers cut after so many digits (GPT-4: 3).

    Two, as nanochat found better for small vocabularies; one, as in Llama 2 and PaLM.
    """
    numbers = rf"\p{{N}}{{1,{digits}}}"
    return (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|"
        rf"{numbers}| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    )


PATTERN = write_pattern(2)
SMALLEST_VOCABULARY = 257  # the bytes and end-of-text

# tiktoken's regular expressions overflow their stack at 1,000,000 spaces in a row (and are fine at 800,000).
# A run of twice this length holds an aligned block of white space.
SPACE_BLOCK = 250_000


def define_bpe(
    vocabulary: dict[str, int], special: dict[str, int], merges: Sequence[Sequence[str]], pattern: str
) -> dict[str, Any]:
    """The tokenizer.json of these merges within the pieces of `pattern`."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return define(
        vocabulary,
        special,
        merges=merges,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]},
        decoder=BYTE_LEVEL,
        ignore_merges=True,  # tiktoken looks a whole piece up before it merges
    )


class BpeTokenizer(Tokenizer):
    """Byte pairs merged in the order of their rank within the pieces of a pattern. No text is unknown to it."""

    kind = "bpe"

    def __init__(self, artefact: bytes) -> None:
        super().__init__(artefact)
        definition = json.loads(artefact)
        self.pattern: str = definition["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        no_text = {*self.special_tokens.values()}
        ranks = {bytes_: rank for rank, bytes_ in enumerate(self._tokens) if bytes_ and rank not in no_text}
        self._encoding = tiktoken.Encoding(
            "lmcore", pat_str=self.pattern, mergeable_ranks=ranks, special_tokens=self.special_tokens
        )

    @classmethod
    def train(cls, texts: Iterable[list[str]], vocab_size: int, digits: int = 2) -> "BpeTokenizer":
        """Fit at most `vocab_size` entries, end-of-text included; a small corpus has fewer pairs to merge."""
        pattern = write_pattern(digits)
        fitted = fit_bpe(texts, vocab_size, pattern)
        ranks = {read_symbols(symbols): rank for symbols, rank in fitted.get_vocab().items()}
        return cls.from_ranks(ranks, pattern, len(ranks))

    @classmethod
    def from_ranks(cls, ranks: dict[bytes, int], pattern: str, end_of_text: int) -> "BpeTokenizer":
        """A tokenizer of tiktoken's ranks: the id of each token, which is also its turn to be merged."""
        vocabulary = {write_symbols(token): rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])}
        merges = [(write_symbols(left), write_symbols(right)) for left, right in list_merges(ranks)]
        return cls(write_definition(define_bpe(vocabulary, {END_OF_TEXT: end_of_text}, merges, pattern)))

    @classmethod
    def has_written(cls, definition: Any) -> bool:
        """Our setting of all but pattern, vocabulary and merges, which are believed: only we write the rest so."""
        special = read_special(definition)
        match definition:
            case {
                "model": {"vocab": dict(vocabulary), "merges": list(merges)},
                "pre_tokenizer": {"pretokenizers": [{"pattern": {"Regex": str(pattern)}}, _]},
            } if END_OF_TEXT in special:
                return bool(definition == define_bpe(vocabulary, special, merges, pattern))
        return False

    def encode_batch(self, texts: list[str], threads: int | None = None) -> list[Ids]:
        """`encode` of each text, as arrays, in threads (None: one on each core): tiktoken works without the GIL."""
        threads = min(threads or count_cores(), len(texts))
        if threads < 2:  # a thread of its own would cost a quarter of the speed
            return super().encode_batch(texts)
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self._encode_any, texts))

    def _encode(self, text: str) -> Ids:
        if has_long_space(text):
            return np.array(self._reference.encode(text).ids, dtype=np.uint32)
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def _spell(self, symbol: str) -> bytes:
        return read_symbols(symbol)

    @cached_property
    def _reference(self) -> tokenizers.Tokenizer:
        """The artefact in the library whose format it has: the same ids, slower, and no limit on white space."""
        reference = tokenizers.Tokenizer.from_buffer(self.artefact)
        reference.encode_special_tokens = True  # END_OF_TEXT in a text is text
        return reference


def fit_bpe(texts: Iterable[list[str]], vocab_size: int, pattern: str = PATTERN) -> tokenizers.Tokenizer:
    """The merges of `texts` as tokenizers finds them, room left for end-of-text; ids 0 to 255 are the bytes."""
    fitted = tokenizers.Tokenizer(models.BPE())
    fitted.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=SYMBOLS, show_progress=False)
    fitted.train_from_iterator(texts, trainer)
    return fitted


def list_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every way to put a token together from two others, in the order of rank (transformers' TikTokenConverter).

    tiktoken merges any two neighbours that make up a token; so must a reader of the written merges. Ranks that come
    from training need only one pair each: the others never meet, because merging a token's bytes by rank leads through
    the pair that training saw.
    """
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(left, right) for left, right in pairs if left in ranks and right in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def has_long_space(text: str) -> bool:
    """Whether an aligned block of SPACE_BLOCK characters is all white space."""
    return any(text[start:end].isspace() for start, end in pairwise(range(0, len(text) + 1, SPACE_BLOCK)))


def check_bpe(special_tokens: Sequence[str], vocab_size: int | None, digits: int | None) -> None:
    """Raise ValueError for a vocabulary without room for the bytes and special tokens, or other digits than 1 to 3."""
    smallest = SMALLEST_VOCABULARY + len(special_tokens)
    if vocab_size is None or vocab_size < smallest:
        raise ValueError(
            f"train_tokenizer.vocab_size={vocab_size}: must be at least {smallest} for kind bpe "
            f"(256 bytes, end-of-text and train_tokenizer.special_tokens)"
        )
    if digits not in (1, 2, 3):
        raise ValueError(f"train_tokenizer.digits={digits}: must be 1, 2 or 3 for kind bpe")


BPE_KIND = TokenizerKind(
    reads=("vocab_size", "digits"),
    check=check_bpe,
    train=lambda texts, special_tokens, vocab_size, digits: BpeTokenizer.train(
        texts, vocab_size - len(special_tokens), digits
    ).reserve(special_tokens),
    expect=lambda vocab_size, **_: vocab_size,  # fewer where the text is too short for all
    tokenizer=BpeTokenizer,
)
