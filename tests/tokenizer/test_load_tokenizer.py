"""Choosing, loading and measuring a tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmcore.errors import ArtifactError, DataError, ParameterError
from lmcore.params import parse_section
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokenizer.char import CharTokenizer
from lmcore.tokenizer.load import TokenizerParams, load_tokenizer, measure_tokenizer, train_tokenizer

TEXTS = [["the cat sat on the mat; the end", "émigré"], ["a cat"]]


def params(**changes: Any) -> TokenizerParams:
    return parse_section(
        TokenizerParams,
        "train_tokenizer",
        {"kind": "bpe", "vocab_size": 300, "name": None, "max_bytes": None, **changes},
    )


@pytest.mark.parametrize("kind", ["bpe", "char", "byte"])
def test_kind_alone_chooses_the_tokenizer(kind: str) -> None:
    tokenizer = train_tokenizer(params(kind=kind), iter(TEXTS))  # vocab_size stays set, as in params.yaml
    assert tokenizer.kind == kind
    assert tokenizer.decode(tokenizer.encode("the émigré")) == "the émigré"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 256}, r"^train_tokenizer\.vocab_size=256: must be at least 257 for kind bpe"),
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


def test_measuring_counts_bytes_tokens_and_unused_entries() -> None:
    trained = BpeTokenizer.train([["abababab"]], 300)  # merges ab, abab, abababab
    assert trained.vocab_size == 260
    assert measure_tokenizer(trained, [["abababab"]]) == {"vocab_size": 260, "bytes_per_token": 8.0, "unused_tokens": 2}
    assert measure_tokenizer(trained, [["abab"], ["ab"]])["bytes_per_token"] == 3.0
    assert measure_tokenizer(ByteTokenizer.create(), TEXTS)["unused_tokens"] == 0


@pytest.mark.parametrize("texts", [[], [[]], [[""]]])
def test_no_text_to_measure_is_a_data_error(texts: list[list[str]]) -> None:
    with pytest.raises(DataError, match="the train documents hold no text"):
        measure_tokenizer(ByteTokenizer.create(), texts)


def test_a_models_tokenizer_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_tokenizer(params(vocab_size=300), [["some text, some more text"]])
    first.save(tmp_path / "model")
    again = train_tokenizer(params(kind="pretrained", name=str(tmp_path / "model")), [["quite other words"]])
    assert again.fingerprint == first.fingerprint
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # as in a temporary copy of the project
    again = train_tokenizer(params(kind="pretrained", name="./model"), [])
    assert again.fingerprint == first.fingerprint
    with pytest.raises(ArtifactError, match=r"~no-such-user/x/tokenizer\.json does not exist"):
        train_tokenizer(params(kind="pretrained", name="~no-such-user/x"), [])
    with pytest.raises(ArtifactError, match=r"none/tokenizer\.json does not exist"):
        train_tokenizer(params(kind="pretrained", name=f"{tmp_path}/none"), [["x"]])
