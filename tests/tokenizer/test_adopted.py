"""Tokenizers fitted and saved with Hugging Face's library alone: the same ids, or a refusal with its reason."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken_ext.openai_public
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from lmcore.errors import ArtifactError
from lmcore.tokenizer.bpe import PATTERN, BpeTokenizer
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokenizer.pretrained import portable_pattern

CORPUS = [
    "the cat isn't on the mat, the 12 cats are; they'll\n\n  be there    again\t\tin 2024\n" * 3,
    "Käse, naïve cafés",
]
END = "<|endoftext|>"
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

words = st.sampled_from([*CORPUS[0].split(" "), " ", "\n", "12", "'ll", "é"])
texts = st.lists(words | st.text(), max_size=9).map("".join)


@cache
def fit(first: bool = False, split: bool = False) -> tokenizers.Tokenizer:
    """As GPT-2's: cut by ByteLevel itself or by a Split before it, its special tokens before or behind the others."""
    fitted = tokenizers.Tokenizer(models.BPE())
    fitted.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split:
        isolated = pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
        fitted.pre_tokenizer = pre_tokenizers.Sequence([isolated, BYTE_LEVEL])
    fitted.decoder = decoders.ByteLevel()
    special = ["<|other|>", END] if first else []
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    fitted.train_from_iterator(CORPUS, trainer)
    fitted.add_special_tokens([END])
    return fitted


def adopt(definition: str | dict[str, Any], folder: Path) -> BpeTokenizer:
    text = definition if isinstance(definition, str) else json.dumps(definition)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    adopted = load_tokenizer(folder)
    assert isinstance(adopted, BpeTokenizer)
    return adopted


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_ids_are_the_others(first: bool, split: bool, tmp_path: Path) -> None:
    original = fit(first, split)
    original.encode_special_tokens = True  # in a text they are text
    adopted = adopt(original.to_str(), tmp_path)
    assert adopted.end_of_text == original.token_to_id(END)
    assert adopted.token_bytes(original.token_to_id("Ġthe")) == b" the"

    @settings(deadline=None, max_examples=60)
    @given(text=texts)
    def check(text: str) -> None:
        ids = original.encode(text, add_special_tokens=False).ids
        assert adopted.encode(text) == ids
        assert adopted.decode(ids) == text

    check()
    (tmp_path / "saved").mkdir()
    adopted.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.fingerprint == adopted.fingerprint
    assert again.encode(CORPUS[0]) == adopted.encode(CORPUS[0])


def test_gpt2s_file_is_tiktoken_s_gpt2(tmp_path: Path) -> None:
    """Whoever encoded with one may train with the other: by the same ranks the artefacts are equal byte for byte."""
    original = fit()
    adopted = adopt(original.to_str(), tmp_path)
    ranks = {adopted.token_bytes(rank): rank for rank in range(adopted.end_of_text)}
    pattern = portable_pattern(tiktoken_ext.openai_public.r50k_pat_str)
    assert adopted.fingerprint == BpeTokenizer.from_ranks(ranks, pattern, adopted.end_of_text).fingerprint
    pairs = json.loads(original.to_str())
    pairs["model"]["merges"] = [" ".join(pair) for pair in pairs["model"]["merges"]]  # as older versions wrote them
    del pairs["pre_tokenizer"]["use_regex"]
    assert adopt(pairs, tmp_path).fingerprint == adopted.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "is not byte-level BPE: it must be one that lmcore made"),
        ({"normalizer": {"type": "NFC"}}, r"changes the text first \(normalizer NFC\)"),
        (
            {"added_tokens": [{"content": END, "id": 329}, {"content": "   ", "id": 330, "special": False}]},
            r"takes '   ' out of the text before it is cut",
        ),
        ({"added_tokens": []}, r"has no <\|endoftext\|>"),
        ({"pre_tokenizer": None}, "cuts the text by other rules"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "cuts the text by other rules"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "ByteLevel"}]}},
            "cuts the text by other rules",
        ),
    ],
)
def test_another_kind_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=rf"tokenizer\.json {message}"):
        adopt({**json.loads(fit().to_str()), **changes}, tmp_path)


def test_merges_in_another_order_are_refused(tmp_path: Path) -> None:
    definition = json.loads(fit().to_str())
    definition["model"]["merges"].reverse()
    with pytest.raises(ArtifactError, match="has merges in another order than its ids"):
        adopt(definition, tmp_path)


@pytest.mark.parametrize(
    "damage", [{"merges": [["a", "?"]]}, {"merges": [["q", "x"]]}, {"merges": [1]}, {"vocab": {"a": 1}}]
)
def test_a_damaged_file_is_one_line(damage: dict[str, Any], tmp_path: Path) -> None:
    definition = json.loads(fit().to_str())
    definition["model"] |= damage
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is (damaged|not byte-level BPE)"):
        adopt(definition, tmp_path)
