"""The samples of a list of prompts: seeds, any text as a prompt, endings; their page, lines and metrics."""

import json
import re
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from imports import ROOT
from tiny import GPT2_MODEL, sharpen, tokenizer_params
from torch import nn

from lmcore.errors import ArtifactError, ParameterError
from lmcore.generate.decoder import ActiveSequence, Decoder, DecodingStats
from lmcore.generate.open_decoder import DECODERS
from lmcore.generate.params import SampleParams
from lmcore.generate.quantize import WEIGHT_TYPES, convert_weights
from lmcore.generate.samples import (
    Sample,
    distinct_share,
    draw_samples,
    fence,
    measure_samples,
    render_json_lines,
    render_markdown,
)
from lmcore.generate.text_stream import Completion
from lmcore.model.gpt import GPT
from lmcore.params import parse_section
from lmcore.tokenizer.base import Tokenizer
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer


def build_model(vocab_size: int = 257, end_of_text: int | None = 256) -> GPT:
    return sharpen(GPT(GPT2_MODEL, vocab_size, seed=1, end_of_text=end_of_text))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(tokenizer_params("byte"), [])


def build_params(prompts: list[str], **changes: object) -> SampleParams:
    values = {"samples_per_prompt": 2, "max_new_tokens": 12, "temperature": 1.0, "top_k": 50, "top_p": 0.95, "seed": 1}
    off = {"min_p": None, "repetition_penalty": 1.0, "stop": None, "draft_tokens": None, "weights": "float32"}
    off["decoder"] = "plain"
    return SampleParams.model_validate({"prompts": prompts, **values, **off, **changes})


def draw(tokenizer: Tokenizer, prompts: list[str], model: GPT | None = None, **changes: object) -> list[Sample]:
    return draw_samples(model or build_model(), tokenizer, build_params(prompts, **changes))[0]


def test_a_sample_does_not_depend_on_the_list(tokenizer: Tokenizer) -> None:
    def texts(prompts: list[str], **changes: object) -> dict[tuple[str, int], tuple[int, str, list[int], str]]:
        return {
            (one.prompt, one.number): (one.seed, one.text, one.completion.tokens, one.completion.finish)
            for one in draw(tokenizer, prompts, **changes)
        }

    several = texts(["", "a", "def f(", "a" * 99])
    assert several == texts(["a" * 99, "def f(", "", "a"])
    assert several == texts(["", "a", "def f(", "a" * 99], draft_tokens=4)
    assert several[("a", 2)] == texts(["a"], samples_per_prompt=5)[("a", 2)]
    assert several[("a", 1)][1] != several[("a", 2)][1]
    assert several[("a", 1)][1] != texts(["a"], seed=2)[("a", 1)][1]


@pytest.mark.parametrize(
    "prompt", ["", "def", "naïve 日本 🙂", "\x00\r\n\u2028", "<|endoftext|>", "\ud800 lone", "x" * 300]
)
def test_any_text_is_a_prompt(prompt: str, tokenizer: Tokenizer) -> None:
    for sample in draw(tokenizer, [prompt], max_new_tokens=40):
        assert sample.prompt == prompt.replace("\ud800", "\ufffd")
        assert sample.text.startswith(sample.prompt)
        assert sample.text == sample.prompt + tokenizer.decode(sample.completion.tokens)
        assert all(0 <= token < 256 for token in sample.completion.tokens)
        assert (sample.completion.finish == "length") == (len(sample.completion.tokens) == 40)
        sample.text.encode()


def test_an_empty_prompt_begins_a_document(tokenizer: Tokenizer) -> None:
    model = build_model()
    (sample,) = draw(tokenizer, [""], model, samples_per_prompt=1, temperature=0.0, max_new_tokens=1)
    with torch.inference_mode():
        assert sample.completion.tokens == [int(model(torch.tensor([[tokenizer.end_of_text]]))[0][0, -1].argmax())]


def test_a_sample_can_be_drawn_again_from_its_seed(tokenizer: Tokenizer) -> None:
    model = build_model()
    first, _ = draw(tokenizer, ["a"], model, top_k=None, top_p=None)
    generator, tokens = torch.Generator().manual_seed(first.seed), [97]
    for _ in first.completion.tokens:
        with torch.inference_mode():
            cumulative = model(torch.tensor([tokens]))[0][0, -1].double().softmax(-1).cumsum(-1)
        tokens.append(int(torch.searchsorted(cumulative, torch.rand(1, generator=generator, dtype=torch.float64))))
    assert first.completion.tokens == tokens[1:]


def test_a_stop_string_ends_a_sample_and_is_not_shown(tokenizer: Tokenizer) -> None:
    (plain,) = draw(tokenizer, ["a"], samples_per_prompt=1, max_new_tokens=60)
    stop = tokenizer.decode(plain.completion.tokens)[7:9]
    (stopped,) = draw(tokenizer, ["a"], samples_per_prompt=1, max_new_tokens=60, stop=["never said", stop])
    assert stopped.completion.finish == "stop"
    assert stopped.completion.text == plain.completion.text[: plain.completion.text.index(stop)]


def test_a_long_prompt_is_told(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tokenizer, ["x" * 16])
    assert capsys.readouterr().err == ""
    draw(tokenizer, ["x" * 17])
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "has 17 tokens, the model's context 16: continued from its last 8" in told


def test_padded_and_reserved_ids_are_never_drawn() -> None:
    """A vocabulary that was padded, as imported ones are, and a special token that no text encodes to."""
    tokenizer = train_tokenizer(tokenizer_params("byte", special_tokens=["<|user|>"]), [])
    samples = draw(tokenizer, ["a"], build_model(320, None), samples_per_prompt=20, temperature=100.0, top_k=None)
    drawn = {token for sample in samples for token in sample.completion.tokens}
    assert len(drawn) > 100
    assert max(drawn) < 256


@pytest.mark.parametrize(("vocab_size", "end_of_text"), [(200, None), (300, 256), (257, 3)])
def test_a_foreign_tokenizer_is_refused(tokenizer: Tokenizer, vocab_size: int, end_of_text: int | None) -> None:
    with pytest.raises(ArtifactError, match=rf"vocabulary has {vocab_size} tokens, its tokenizer's 257.*dvc repro"):
        draw(tokenizer, ["a"], build_model(vocab_size, end_of_text))


def test_a_samples_logprob_is_the_models_own(tokenizer: Tokenizer) -> None:
    """Whatever was set: of the whole vocabulary at temperature 1, an end of text among the tokens."""
    model = build_model()
    (sample,) = draw(tokenizer, ["ab"], model, samples_per_prompt=1, temperature=3.0, top_k=5, draft_tokens=2)
    tokens = [*b"ab", *sample.completion.tokens]
    if sample.completion.finish == "end_of_text":
        tokens.append(tokenizer.end_of_text)
    with torch.inference_mode():
        logprobs = model(torch.tensor([tokens[:-1]]))[0][0].log_softmax(-1)
    expected = logprobs[1:].gather(1, torch.tensor(tokens[2:])[:, None]).sum().item()
    assert sample.completion.logprob == pytest.approx(expected, abs=1e-4)


def test_a_long_prompt_is_told_once(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tokenizer, ["x" * 17], samples_per_prompt=3)
    assert capsys.readouterr().err.count("continued from") == 1


PARAMS = SampleParams(prompts=["", "a\n```b"], max_new_tokens=4, temperature=0.8)
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
    assert measure_samples(SAMPLES, DecodingStats()) == {
        "samples": 4,
        "tokens": 13,
        "distinct_1": round(7 / 13, 6),
        "distinct_2": round(6 / 9, 6),
        "distinct_3": round(5 / 6, 6),
    }
    stats = DecodingStats(forwards=9, tokens=13, drafted=20, accepted=4)
    assert measure_samples(SAMPLES, stats)["tokens_per_forward"] == 1.444444


@given(st.lists(st.lists(st.integers(0, 5), max_size=12), max_size=4), st.integers(1, 3))
def test_distinct_share_counts_slices(texts: list[list[int]], n: int) -> None:
    slices = [tuple(text[start : start + n]) for text in texts for start in range(len(text) - n + 1)]
    expected = len(set(slices)) / len(slices) if slices else 0.0
    assert distinct_share(texts, n) == pytest.approx(expected)


def test_all_different_tokens_are_fully_distinct() -> None:
    assert distinct_share([list(islice(range(100), 50))], 2) == 1.0


class Reversing(Decoder):
    """A decoder from outside, which proposes the text so far backwards."""

    drafts_by_itself = True

    def __init__(self, model: GPT, **options: Any) -> None:
        super().__init__(model, draft_tokens=2, **options)

    def _propose(self, sequence: ActiveSequence, count: int) -> list[int]:
        return sequence.tokens[::-1][:count]


def test_a_decoder_and_a_weight_type_are_added_by_an_entry(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parameters permit them, a typing error is told the nearest name, and samples are drawn with them."""
    monkeypatch.setitem(DECODERS, "reversing", Reversing)
    monkeypatch.setitem(WEIGHT_TYPES, "zero", lambda model: nn.init.zeros_(model.token_embedding.weight))
    values = SampleParams(prompts=["ab"], draft_tokens=None, temperature=1.5, max_new_tokens=40).model_dump()
    params = parse_section(SampleParams, "sample", {**values, "decoder": "reversing", "weights": "zero"})
    samples, stats = draw_samples(build_model(), tokenizer, params)
    plain, _ = draw_samples(build_model(), tokenizer, params.model_copy(update={"decoder": "plain"}))
    assert [one.completion.tokens for one in samples] == [one.completion.tokens for one in plain]
    assert stats.drafted > 0
    zeroed, _ = draw_samples(convert_weights(build_model(), params.weights), tokenizer, params)
    assert [one.text for one in zeroed] != [one.text for one in samples]
    for key, wrong, known in [("decoder", "reversng", "reversing"), ("weights", "zeros", "zero")]:
        with pytest.raises(ParameterError, match=rf"sample\.{key}='{wrong}': must be .* did you mean {known}\?"):
            parse_section(SampleParams, "sample", {**values, key: wrong})
    with pytest.raises(
        ParameterError, match=r"sample\.draft_tokens=2: sample\.decoder=reversing has draft tokens of its"
    ):
        parse_section(SampleParams, "sample", {**values, "decoder": "reversing", "draft_tokens": 2})


@pytest.mark.parametrize(("key", "registry"), [("decoder", DECODERS), ("weights", WEIGHT_TYPES)])
def test_every_name_is_documented(key: str, registry: dict[str, Any]) -> None:
    docs = (ROOT / "docs/decoding.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{key}` \|.*$", docs, re.M)
    (line,) = re.findall(rf"^  {key}: .*$", (ROOT / "params.yaml").read_text(encoding="utf-8"), re.M)
    for name in registry:
        assert f"`{name}`" in row
        assert re.search(rf"\b{name}\b", line.partition("#")[2])
