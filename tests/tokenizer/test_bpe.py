"""Byte-pair encoding beside tokenizers, which fits it, and tiktoken, which encodes it."""

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.errors import ArtifactError
from lmcore.tokenizer.bpe import (
    PATTERN,
    SPACE_BLOCK,
    BpeTokenizer,
    fit_bpe,
    has_long_space,
    list_merges,
    write_pattern,
)

REAL_TEXT = Path(argparse.__file__).read_text(encoding="utf-8")
OTHER_TEXT = Path(hashlib.__file__).read_text(encoding="utf-8")


@cache
def build() -> BpeTokenizer:
    return BpeTokenizer.train([[REAL_TEXT]], 1000)


def build_reference(tokenizer: BpeTokenizer) -> tokenizers.Tokenizer:
    reference = tokenizers.Tokenizer.from_buffer(tokenizer.artefact)
    reference.encode_special_tokens = True
    return reference


def test_ids_are_those_of_the_fitted_tokenizer_on_real_text() -> None:
    fitted = fit_bpe([[REAL_TEXT]], 1000)
    assert build().vocab_size == 1000
    for text in (REAL_TEXT, OTHER_TEXT):
        assert build().encode(text) == fitted.encode(text).ids


def test_ids_are_those_of_tiktoken_itself() -> None:
    ranks = {build().token_bytes(rank): rank for rank in range(build().end_of_text)}
    encoding = tiktoken.Encoding("t", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert build().encode(OTHER_TEXT) == encoding.encode_ordinary(OTHER_TEXT)
    assert all(build().token_bytes(id_) == encoding.decode_single_token_bytes(id_) for id_ in ranks.values())


@settings(deadline=None, max_examples=150)
@given(
    corpus=st.lists(st.text("ab ", max_size=40), max_size=6),
    merges=st.integers(0, 60),
    text=st.text("ab ", max_size=80),
)
def test_any_small_corpus_gives_merges_that_both_follow_alike(corpus: list[str], merges: int, text: str) -> None:
    tokenizer = BpeTokenizer.train([corpus], 257 + merges)
    fitted = fit_bpe([corpus], 257 + merges)
    assert tokenizer.encode(text) == fitted.encode(text).ids == build_reference(tokenizer).encode(text).ids


def test_each_written_merge_makes_a_token_and_each_longer_token_has_one() -> None:
    ranks = {b"a": 0, b"b": 1, b"ab": 2, b"abab": 3, b"aba": 4}
    assert list_merges(ranks) == [(b"a", b"b"), (b"ab", b"ab"), (b"aba", b"b"), (b"ab", b"a")]
    trained = {build().token_bytes(rank): rank for rank in range(build().end_of_text)}
    assert {left + right for left, right in list_merges(trained)} == {token for token in trained if len(token) > 1}


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("first", range(0, 0x20000, 0x4000))
def test_every_character_splits_alike_in_both_regular_expression_engines(first: int, digits: int) -> None:
    pattern = write_pattern(digits)
    # Every substring is a token, so ids are the pieces of the pattern: a difference in Unicode tables would show.
    characters = [chr(point) for point in range(first, first + 0x4000, 7) if not 0xD800 <= point < 0xE000]
    probes = [probe.format(c) for c in characters for probe in ("a{}b", "1{}12345", "'{}", "!{}\n", " {} x")]
    cuts = {text[i:j].encode() for text in probes for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {cut: 256 + rank for rank, cut in enumerate(sorted(cuts - ranks.keys()))}
    encoding = tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    for probe in probes:
        pieces = [encoding.decode_single_token_bytes(id_).decode() for id_ in encoding.encode_ordinary(probe)]
        assert pieces == [piece for piece, _ in split.pre_tokenize_str(probe)], ascii(probe)


@pytest.mark.parametrize("corpus", [[], [[]], [[""]], [["a"]], [["ab"]]])
def test_a_tiny_corpus_gives_a_smaller_vocabulary(corpus: list[list[str]]) -> None:
    tokenizer = BpeTokenizer.train(corpus, 5000)
    assert tokenizer.vocab_size in (257, 258)
    assert tokenizer.decode(tokenizer.encode("ab Käse")) == "ab Käse"


def test_a_failure_while_reading_the_texts_is_passed_on() -> None:
    def texts() -> Iterator[list[str]]:
        yield ["some text"]
        raise ArtifactError("part-00001 is damaged")

    with pytest.raises(ArtifactError, match="part-00001 is damaged"):
        BpeTokenizer.train(texts(), 300)


def test_the_smallest_vocabulary_is_bytes_and_end_of_text() -> None:
    tokenizer = BpeTokenizer.train([[REAL_TEXT]], 257)
    assert tokenizer.vocab_size == 257
    assert len(tokenizer.encode(OTHER_TEXT)) == len(OTHER_TEXT.encode())


@pytest.mark.parametrize("space", [" ", "\n\t"])
def test_a_million_spaces_do_not_overflow_the_stack(space: str) -> None:
    text = "a" + space * (1_000_000 // len(space)) + "b"
    assert has_long_space(text)
    assert build().decode(build().encode(text)) == text


def test_both_ways_to_encode_long_white_space_agree() -> None:
    text = "def f():\n" + " " * (2 * SPACE_BLOCK) + "return 1\n" + "<|endoftext|>"
    assert has_long_space(text)
    assert build().encode(text) == build()._encoding.encode_ordinary(text)
    assert not has_long_space("a" * SPACE_BLOCK + " " * (SPACE_BLOCK - 1))


def test_the_artefact_is_the_same_in_every_process(tmp_path: Path) -> None:
    program = (
        "import argparse, pathlib; from lmcore.tokenizer.bpe import BpeTokenizer;"
        "text = pathlib.Path(argparse.__file__).read_text(encoding='utf-8');"
        "print(BpeTokenizer.train([text.splitlines(True)], 700).fingerprint)"
    )
    root = Path(__file__).parents[2]
    prints = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "4"))
    ]
    assert prints[0] == prints[1]
    assert len(prints[0].strip()) == 64
