"""Choosing and loading a tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tokenizer_params

from lmcore.errors import ArtifactError, ParameterError
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokenizer.char import CharTokenizer
from lmcore.tokenizer.load import load_tokenizer
from lmcore.train_tokenizer.params import TokenizerParams
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

TEXTS = [["the cat sat on the mat; the end", "émigré"], ["a cat"]]


def params(**changes: Any) -> TokenizerParams:
    return tokenizer_params(**{"kind": "bpe", **changes})


@pytest.mark.parametrize("kind", ["bpe", "char", "byte"])
def test_kind_alone_chooses_the_tokenizer(kind: str) -> None:
    tokenizer = train_tokenizer(params(kind=kind), iter(TEXTS))  # vocab_size stays set, as in params.yaml
    assert tokenizer.kind == kind
    assert tokenizer.decode(tokenizer.encode("the émigré")) == "the émigré"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 256}, r"^train_tokenizer\.vocab_size=256: must be at least 257 for kind bpe"),
        ({"vocab_size": 258, "special_tokens": ["<a>", "<b>"]}, r"vocab_size=258: must be at least 259 for kind bpe"),
        ({"digits": 0}, r"^train_tokenizer\.digits=0: must be 1, 2 or 3 for kind bpe$"),
        ({"digits": None}, r"^train_tokenizer\.digits=None: must be 1, 2 or 3"),
        ({"digits": 2.5}, r"^train_tokenizer\.digits=2\.5: must be a whole number"),
        ({"special_tokens": "<|user|>"}, r"^train_tokenizer\.special_tokens='<\|user\|>': must be a list$"),
        ({"special_tokens": ["<a>", ""]}, r"^train_tokenizer\.special_tokens\[1\]='': must be ASCII without spaces"),
        ({"special_tokens": ["<|endoftext|>"]}, r"\[0\]='<\|endoftext\|>': every tokenizer has it, leave it out"),
        ({"special_tokens": ["<a>", "<b>", "<a>"]}, r"special_tokens\[2\]='<a>': is there twice, leave one out"),
        *(
            ({"special_tokens": [name]}, "must be ASCII")
            for name in ("user", "<|", "<a b>", "<é>", "<|ü|>", "(self", " ")
        ),
        ({"vocab_size": None}, r"^train_tokenizer\.vocab_size=None: must be at least 257 for kind bpe"),
        ({"kind": "pretrained"}, r"^train_tokenizer\.name=None: must be one of .*gpt2.* for kind pretrained"),
        ({"kind": "pretrained", "name": "gpt3"}, r"^train_tokenizer\.name=gpt3: must be one of .*cl100k_base"),
        ({"kind": "bep"}, r"train_tokenizer\.kind='bep': .*did you mean bpe"),
        ({"vocab_sise": 300}, r"train_tokenizer\.vocab_sise=300: unknown key, did you mean train_tokenizer.vocab_size"),
    ],
)
def test_a_wrong_parameter_names_the_rule(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        params(**changes)


def test_other_kinds_look_at_no_digits() -> None:
    assert params(kind="char", digits=None, vocab_size=None).digits is None
    assert params(kind="byte", digits=9).digits == 9


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_digits_are_the_longest_number_in_a_token(digits: int) -> None:
    tokenizer = train_tokenizer(params(digits=digits), [["12345678 " * 9]])
    pieces = [tokenizer.token_bytes(token).decode() for token in tokenizer.encode("12345678")]
    assert pieces == ["12345678"[start : start + digits] for start in range(0, 8, digits)]


@pytest.mark.parametrize("kind", ["bpe", "char", "byte"])
def test_special_tokens_are_counted_by_vocab_size_and_come_last(kind: str, tmp_path: Path) -> None:
    names = ["<|user|>", "<|assistant|>"]
    vocab_size = 262 if kind == "bpe" else None
    trained = train_tokenizer(params(kind=kind, vocab_size=vocab_size, special_tokens=names), TEXTS)
    bare = train_tokenizer(params(kind=kind, vocab_size=vocab_size and vocab_size - 2), TEXTS)
    assert trained.vocab_size == bare.vocab_size + 2 == (vocab_size or trained.vocab_size)
    assert list(trained.special_tokens.values()) == [*range(bare.end_of_text, trained.vocab_size)]
    trained.save(tmp_path)
    again = params(kind="pretrained", name=f"{tmp_path}", special_tokens=[names[1], "<|tool|>"])
    assert list(train_tokenizer(again, []).special_tokens) == ["<|endoftext|>", *names, "<|tool|>"]


@pytest.mark.parametrize(
    ("kind", "fingerprint"),
    [
        ("bpe", "fed716155b7c1fc4af73b232332f8fc1c65a9b1232a5783acaeaf8cc8b7fc8e1"),
        ("char", "42b50e8af9846ccd7dec8482e1c7e19ffecdd93b46b0ba643c06e81de237d214"),
        ("byte", "9e04e9f87e166f6545f16d53de6db677f09fa7a6d0d25a65c6acc22283b6d5e1"),
    ],
)
def test_the_artefact_is_the_one_that_it_always_was(kind: str, fingerprint: str) -> None:
    texts = [["the cat sat on the mat in 2024; the end", "émigré"], ["a cat"]]
    assert train_tokenizer(params(kind=kind, vocab_size=290), texts).fingerprint == fingerprint


def test_a_missing_file_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json does not exist: run the train_tokenizer stage"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("artefact", "message"),
    [
        ("", "is damaged .*: run the train_tokenizer stage"),
        ("{", "is damaged .*: run the train_tokenizer stage"),
        ("[]", "is not byte-level BPE: it must be one that lmcore made"),
        ('{"model": {"type": "WordPiece"}}', "is not byte-level BPE: it must be one that lmcore made"),
    ],
)
def test_no_tokenizer_names_the_file_and_the_way_out(artefact: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(artefact)
    with pytest.raises(ArtifactError, match=rf"tokenizer\.json {message}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "tokenizer", [BpeTokenizer.train(TEXTS, 300), CharTokenizer.train(TEXTS), ByteTokenizer.create()]
)
@pytest.mark.parametrize(
    "vocabulary", [[], {}, {"a": 0}, {"ab ": 0, "<|endoftext|>": 1}, {"a": "0", "<|endoftext|>": 1}]
)
def test_a_damaged_vocabulary_names_the_file(tokenizer: Any, vocabulary: Any, tmp_path: Path) -> None:
    definition = json.loads(tokenizer.artefact)
    definition["model"]["vocab"] = vocabulary
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is (damaged|not byte-level BPE).*: (run|it must)"):
        load_tokenizer(tmp_path)


def test_a_models_tokenizer_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_tokenizer(params(vocab_size=300), [["some text, some more text"]])
    first.save(tmp_path / "model")
    again = train_tokenizer(params(kind="pretrained", name=str(tmp_path / "model")), [["quite other words"]])
    assert again.fingerprint == first.fingerprint
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # as in a temporary copy of the project
    again = train_tokenizer(params(kind="pretrained", name="./model"), [])
    assert again.fingerprint == first.fingerprint
    for name in ("~no-such-user/x", f"{tmp_path}/none"):
        with pytest.raises(ParameterError, match=rf"^train_tokenizer\.name={name}: .* is not a folder; it begins at"):
            train_tokenizer(params(kind="pretrained", name=name), [])
    (tmp_path / "none").mkdir()
    with pytest.raises(ArtifactError, match=r"none/tokenizer\.json does not exist: train_tokenizer\.name=.*none must"):
        train_tokenizer(params(kind="pretrained", name=f"{tmp_path}/none"), [["x"]])
