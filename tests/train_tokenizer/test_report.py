"""The page about a tokenizer: what it must say, and that Markdown shows it."""

import argparse
import re
from pathlib import Path

import pytest

from lmcore.tokenizer.base import Tokenizer
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokenizer.char import CharTokenizer
from lmcore.train_tokenizer.counts import count_tokens
from lmcore.train_tokenizer.report import render_page, show_token, write_code

REAL_TEXT = Path(argparse.__file__).read_text(encoding="utf-8")
NAMED = [[("a.py", REAL_TEXT), *((f"b.x{number:02}", "the cat | the `cat` ") for number in range(20))]]
TEXTS = [[text for _, text in batch] for batch in NAMED]
TOKENIZERS = [BpeTokenizer.train(TEXTS, 900).reserve(["<|user|>"]), CharTokenizer.train(TEXTS), ByteTokenizer.create()]
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: tokenizer.kind)


def tables(page: str) -> list[list[list[str]]]:
    """The cells of every table, as GitHub's Markdown reads them."""
    blocks = re.findall(r"(?:^\|.*\n)+", page, flags=re.M)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()] for block in blocks]


@each_tokenizer
def test_it_is_short_and_every_row_has_its_columns(tokenizer: Tokenizer) -> None:
    page = render_page(tokenizer, count_tokens(tokenizer, NAMED))
    assert len(page.splitlines()) < 100
    assert page.endswith("\n")
    assert not page.endswith("\n\n")
    for table in tables(page):
        assert len({len(row) for row in table}) == 1, table


def test_its_figures_are_those_that_were_counted() -> None:
    tokenizer = TOKENIZERS[0]
    counts = count_tokens(tokenizer, NAMED)
    page = render_page(tokenizer, counts)
    facts, types, longest, costly = tables(page)
    said = {row[0].strip(): row[1].strip() for row in facts}
    assert said["entries"] == "901: 256 of one byte, 643 longer, 2 special"
    assert said["special tokens"] == r"`<\|endoftext\|>` 899, `<\|user\|>` 900"
    assert tokenizer.fingerprint in said["fingerprint"]
    assert said["bytes per token"].startswith(f"{counts.metrics['bytes_per_token']:.4f}, ")
    assert said["round trip"].startswith("all 21 texts")
    assert said["unused entries"].startswith(f"{counts.metrics['unused_tokens']} of 643 longer than a byte")
    assert [row[0].strip() for row in types[2:4]] == ["`.py`", "`.x00`"]
    assert [row[0].strip() for row in types[-2:]] == ["10 others", "all"]
    assert sum(int(row[2].replace(",", "")) for row in types[2:-1]) == counts.total.bytes
    sizes = [int(row[1]) for row in longest[2:]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 15
    assert len(costly) == 2 + 20
    assert re.search(r"runs of one character, at the longest: `␣` × \d+", page)


def test_a_vocabulary_without_longer_entries() -> None:
    page = render_page(ByteTokenizer.create(), count_tokens(ByteTokenizer.create(), [[("a", "the cat")]]))
    assert "| unused entries | none of 0 longer than a byte |" in page
    assert "| none | 1 | 7 | 7 | 1.0000 |" in page


@pytest.mark.parametrize(
    ("token", "shown"),
    [(b" the", "␣the"), (b"\n\n\t", "\\n\\n\\t"), (b" " * 64, "␣ × 64"), (b"\xc3", "\\xc3"), ("é🙂".encode(), "é🙂")],
)
def test_tokens_are_visible(token: bytes, shown: str) -> None:
    assert show_token(token) == shown


def test_a_long_token_is_cut() -> None:
    assert show_token(b"ab" * 100) == "ab" * 20 + "…"


@pytest.mark.parametrize(
    ("text", "code"), [("a", "`a`"), ("a|b", r"`a\|b`"), ("`", "`` ` ``"), ("a``b", "``` a``b ```")]
)
def test_code_cannot_be_closed_by_its_text(text: str, code: str) -> None:
    assert write_code(text) == code
