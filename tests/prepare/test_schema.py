"""The rules a text must keep, and which one is named when it breaks several."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.prepare.documents import Document
from lmcore.prepare.schema import build_schema, find_reasons


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("long enough", None),
        ("five5", None),
        ("twelve chars", None),
        ("é" * 12, None),
        ("four", "too_short"),
        ("thirteen char", "too_long"),
        ("", "empty"),
        ("  \r\n\x0c\u3000\u2028", "empty"),
        ("\0", "nul_byte"),
        ("a binary \0 file", "nul_byte"),
    ],
)
def test_the_first_broken_rule_is_the_reason(text, reason):
    assert find_reasons([Document.of("a", text)], build_schema(5, 12)) == [reason]


def test_no_upper_limit():
    assert find_reasons([Document.of("a", 100_000 * "x")], build_schema(1, None)) == [None]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.text(alphabet="a \0", max_size=6), max_size=20))
def test_reasons_belong_to_their_rows(texts):
    def find_plainly(text: str) -> str | None:
        if "\0" in text:
            return "nul_byte"
        if not text.strip():
            return "empty"
        return "too_short" if len(text) < 2 else "too_long" if len(text) > 4 else None

    documents = [Document.of("a", text) for text in texts]
    assert find_reasons(documents, build_schema(2, 4)) == [find_plainly(text) for text in texts]


def test_importing_pandera_warns_of_nothing():
    run = [sys.executable, "-W", "error", "-c", "import lmcore.prepare.schema"]
    assert subprocess.run(run, capture_output=True, text=True, check=False).stderr == ""
