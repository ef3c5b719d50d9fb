"""The samples' page, lines and numbers."""

import json
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.generate.decoder import Tally
from lmcore.generate.params import SampleParams
from lmcore.generate.report import distinct_share, fence, measure_samples, render_json_lines, render_markdown
from lmcore.generate.samples import Sample
from lmcore.generate.text_stream import Completion

PARAMS = SampleParams(
    prompts=["", "a\n```b"],
    samples_per_prompt=2,
    max_new_tokens=4,
    temperature=0.8,
    top_k=None,
    top_p=0.9,
    min_p=None,
    repetition_penalty=1.0,
    stop=[],
    draft_tokens=None,
    decoder="plain",
    weights="float32",
    seed=1,
)
SAMPLES = [
    Sample("", 1, 11, Completion("xyxy", [1, 2, 1, 2], "length")),
    Sample("", 2, 12, Completion("x", [1], "end_of_text")),
    Sample("a\n```b", 1, 13, Completion("\u2028````", [3, 3, 3, 3], "length", -5.12345)),
    Sample("a\n```b", 2, 14, Completion("\ufffd", [4, 5, 6, 7], "stop")),
]


@given(st.text(alphabet="`a\n", max_size=40))
def test_no_text_closes_its_fence(text: str) -> None:
    opening, *inside, closing = fence(text).split("\n")
    assert opening == closing + "text"
    assert set(closing) == {"`"}
    assert len(closing) >= 3
    assert "\n".join(inside) == text
    assert closing not in text


def test_page() -> None:
    page = render_markdown(PARAMS, SAMPLES)
    assert "| temperature | 0.8 |\n| top_k |  |\n| top_p | 0.9 |" in page
    assert "## Prompt 1\n\nEmpty: a new document.\n\n### Sample 1.1: 4 new tokens, stopped at the length" in page
    assert "### Sample 1.2: 1 new tokens, stopped at its end of text\n\n```text\nx\n```\n" in page
    assert "## Prompt 2\n\n````text\na\n```b\n````\n" in page
    assert "`````text\na\n```b\u2028````\n`````\n" in page
    assert page.count("\n## ") == 2
    assert page.count("\n### ") == 4


def test_lines() -> None:
    lines = render_json_lines(SAMPLES).splitlines()  # splits at U+2028 too, were it not escaped
    assert len(lines) == 4
    assert json.loads(lines[2]) == {
        "prompt": "a\n```b",
        "sample": 1,
        "text": "a\n```b\u2028````",
        "tokens": 4,
        "logprob": -5.1235,
        "seed": 13,
        "finish": "length",
    }


def test_metrics() -> None:
    assert measure_samples(SAMPLES, Tally()) == {
        "samples": 4,
        "tokens": 13,
        "distinct_1": round(7 / 13, 6),
        "distinct_2": round(6 / 9, 6),
        "distinct_3": round(5 / 6, 6),
    }
    assert (
        measure_samples(SAMPLES, Tally(forwards=9, tokens=13, drafted=20, accepted=4))["tokens_per_forward"] == 1.444444
    )


@given(st.lists(st.lists(st.integers(0, 5), max_size=12), max_size=4), st.integers(1, 3))
def test_distinct_share_counts_slices(texts: list[list[int]], n: int) -> None:
    slices = [tuple(text[start : start + n]) for text in texts for start in range(len(text) - n + 1)]
    expected = len(set(slices)) / len(slices) if slices else 0.0
    assert distinct_share(texts, n) == pytest.approx(expected)


def test_all_different_tokens_are_fully_distinct() -> None:
    assert distinct_share([list(islice(range(100), 50))], 2) == 1.0
