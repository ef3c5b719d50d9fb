"""Tokenizers fitted and saved with Hugging Face's library alone: the same ids, or a refusal with its reason."""

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import tiktoken_ext.openai_public
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from lmcore.errors import ArtifactError
from lmcore.tokenizer.adopted import PAIRS
from lmcore.tokenizer.base import SAMPLE_TEXTS
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


@pytest.mark.parametrize("names", PAIRS)
def test_vocabulary_and_merges_may_be_two_files(names: tuple[str, str], tmp_path: Path) -> None:
    definition = json.loads(fit().to_str())
    whole = adopt(definition, tmp_path)
    (tmp_path / "two").mkdir()
    vocabulary, merges = (tmp_path / "two" / name for name in names)
    vocabulary.write_text(json.dumps({**definition["model"]["vocab"], END: whole.end_of_text}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in definition["model"]["merges"]), ""]
    merges.write_text("\n".join(lines), encoding="utf-8")
    assert load_tokenizer(tmp_path / "two").fingerprint == whole.fingerprint
    merges.write_text("\n".join(reversed(lines)), encoding="utf-8")
    with pytest.raises(ArtifactError, match=rf"{names[0]} has merges that do not follow from its ids"):
        load_tokenizer(tmp_path / "two")
    vocabulary.write_text(json.dumps(definition["model"]["vocab"] | {"a": 0}))
    with pytest.raises(ArtifactError, match=rf"{names[0]} (is damaged|has)"):
        load_tokenizer(tmp_path / "two")
    merges.unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json does not exist"):
        load_tokenizer(tmp_path / "two")


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
    with pytest.raises(ArtifactError, match="has merges that do not follow from its ids"):
        adopt(definition, tmp_path)


def test_a_token_that_its_own_merges_do_not_make_is_refused(tmp_path: Path) -> None:
    """In tokenizers `abc` is merged to ab, c: b, c comes too late. By rank alone it would be one token."""
    definition = json.loads(fit().to_str())
    alphabet = {symbol: place for place, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    definition["model"]["vocab"] = {**alphabet, "ab": 256, "bc": 257, "abc": 258, END: 259}
    definition["model"]["merges"] = [["a", "b"], ["b", "c"], ["a", "bc"]]
    definition["added_tokens"][0]["id"] = 259
    with pytest.raises(ArtifactError, match="has merges that do not follow from its ids"):
        adopt(definition, tmp_path)


SPLIT = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def cut_by(pattern: str, **changes: Any) -> dict[str, Any]:
    split = {**SPLIT, "pattern": {"Regex": pattern}, **changes}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, BYTES]}}


CHANGES: list[dict[str, Any]] = [
    {"normalizer": {"type": "Lowercase"}},
    {"added_tokens": [{"id": 330, "content": "mat,", "special": False}]},
    {"added_tokens": [{"id": 400, "content": END, "special": True}]},
    {"truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}},
    {"padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}},
    {"post_processor": None},
    {"pre_tokenizer": {**BYTES, "use_regex": True, "add_prefix_space": True}},
    {"pre_tokenizer": BYTES},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, {**BYTES, "use_regex": True}]}},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, {**BYTES, "add_prefix_space": True}]}},
    cut_by(PATTERN, behavior="Removed"),
    cut_by(PATTERN, behavior="MergedWithPrevious"),
    cut_by(PATTERN, invert=True),
]
PATTERNS: list[dict[str, Any]] = [
    cut_by(r"\p{N}{1,3}+| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"),
    cut_by(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"),
    cut_by(r"\s+$|\S+|\s"),
    cut_by(r"^\s+|\S+|\s"),
    cut_by(r" \w+|\W"),
    cut_by(r"\b"),
    cut_by(r"\p{N}{,3}"),
    cut_by(r"\p{L}+"),
    cut_by(r"(?i:THE)| ?[a-z]+|\s+(?!\S)|[\s\S]"),
    {"model": {"merges": []}},
]
MODEL_CHANGES: list[dict[str, Any]] = [
    {"dropout": 0.5},
    {"dropout": 0.0005},
    {"continuing_subword_prefix": "##"},
    {"end_of_word_suffix": "</w>"},
    {"unk_token": "!"},
    {"byte_fallback": True},
    {"ignore_merges": True},
]


@cache
def ours() -> dict[str, Any]:
    definition: dict[str, Any] = json.loads(BpeTokenizer.train([CORPUS], 330).artefact)
    return definition


STARTS = {"GPT-2's": fit, "split": partial(fit, split=True), "ours": ours}
CASES = [
    *((start, change) for start in STARTS for change in [*CHANGES, *({"model": change} for change in MODEL_CHANGES)]),
    # In a file of ours the pattern and the merges are ours too: they need no proof.
    *((start, change) for start in STARTS for change in PATTERNS if start != "ours"),
]


@pytest.mark.parametrize(("start", "change"), CASES, ids=str)
def test_a_changed_file_is_refused_or_means_the_same(start: str, change: dict[str, Any], tmp_path: Path) -> None:
    begun: Any = STARTS[start]()  # type: ignore[operator]
    definition = begun if isinstance(begun, dict) else json.loads(begun.to_str())
    changed = {**definition, **change, "model": {**definition["model"], **change.get("model", {})}}
    try:
        adopted = adopt(changed, tmp_path)
    except ArtifactError:
        return
    original = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    original.encode_special_tokens = True
    original.no_padding()
    original.no_truncation()
    assert adopted.end_of_text == original.token_to_id(END)
    for text in [*CORPUS, *SAMPLE_TEXTS, "20242024", "x_a__b", "one\n\n two \n", "The THE the", " mat, mat,"]:
        assert adopted.encode(text) == original.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("reserved", [[], ["<|user|>", "<|assistant|>"]])
def test_ours_saved_again_by_transformers_is_ours(reserved: list[str], tmp_path: Path) -> None:
    first = BpeTokenizer.train([CORPUS], 330).reserve(reserved)
    first.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    theirs.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() != first.artefact
    assert load_tokenizer(tmp_path / "again").fingerprint == first.fingerprint
    theirs.add_tokens(["mat,"])
    theirs.save_pretrained(tmp_path / "more")
    with pytest.raises(ArtifactError, match="takes 'mat,' out of the text before it is cut"):
        load_tokenizer(tmp_path / "more")


@pytest.mark.parametrize(
    "damage",
    [
        *({"model": {"merges": merges}} for merges in ([["a", "?"]], [["q", "x"]], [1], ["a b c"])),
        {"model": {"vocab": {"a": 1}}},
        {"decoder": {"type": "Nothing"}},
        {"post_processor": 3},
        {"version": "9"},
        {"added_tokens": [{"content": END}]},
        {"added_tokens": 3},
        {"pre_tokenizer": {"type": "ByteLevel"}},
    ],
    ids=str,
)
def test_a_damaged_file_is_one_line(damage: dict[str, Any], tmp_path: Path) -> None:
    definition = json.loads(fit().to_str())
    definition = {**definition, **damage, "model": {**definition["model"], **damage.get("model", {})}}
    with pytest.raises(ArtifactError, match=r"tokenizer\.json (is damaged|is not|has|cuts)") as caught:
        adopt(definition, tmp_path)
    assert "\n" not in str(caught.value)
