"""What holds for every kind of tokenizer: round trips, bytes that add up, and the ids of Hugging Face's reader."""

from functools import cache
from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.errors import ParameterError
from lmcore.tokenizer.base import END_OF_TEXT, Tokenizer
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokenizer.char import CharTokenizer
from lmcore.tokenizer.load import load_tokenizer

RESERVED = ["<|user|>", "<|assistant|>", "[PAD]"]
BARE = ["bpe", "byte", "char", "gapped"]
KINDS = [*BARE, *(f"{kind}, reserved" for kind in BARE)]
REAL_TEXT = Path(tokenizers.__file__).with_suffix(".py").read_text(encoding="utf-8")
CORPUS = [[REAL_TEXT, "Der Käse ist über 3 €. 你好,世界! 🙂"], ["def f(x):\n    return x\n" * 9]]


@cache
def build(kind: str) -> Tokenizer:
    """A small tokenizer; `gapped` has unused ids before end-of-text and one token after it, as published ones do."""
    if kind.endswith(", reserved"):
        return build(kind.removesuffix(", reserved")).reserve(RESERVED)
    match kind:
        case "byte":
            return ByteTokenizer.create()
        case "char":
            return CharTokenizer.train(CORPUS)
        case "bpe":
            return BpeTokenizer.train(CORPUS, 500)
    trained = BpeTokenizer.train(CORPUS, 400)
    ranks = {trained.token_bytes(token): token for token in range(trained.end_of_text)}
    ranks[b"\n" * 16] = 1010
    return BpeTokenizer.from_ranks(ranks, trained.pattern, 1000)


@cache
def build_reference(kind: str) -> tokenizers.Tokenizer:
    """The same artefact read by tokenizers, with `<|endoftext|>` in a text taken as text."""
    reference = tokenizers.Tokenizer.from_buffer(build(kind).artefact)
    reference.encode_special_tokens = True
    return reference


all_kinds = pytest.mark.parametrize("kind", KINDS)
AWKWARD = {
    "code": ["def ", "    ", "\n\n", "\t", "\r\n", "'s", "'LL", " 2024", "1234567", "_x", "!!", "==", " #"],
    "scripts": ["é", "e\u0301", "你好", "🙂", "ſ", "ß", "İ", "٣", "Ⅷ", "½", "\U0010ffff"],
    "separators": ["\u2028", "\u00a0", "\x00", "\x1c", "\ufeff"],
    "names of tokens": ["<0x41>", "Ġ", END_OF_TEXT, *RESERVED],
}
pieces = st.sampled_from([piece for group in AWKWARD.values() for piece in group])
texts = st.text() | st.lists(pieces | st.text(max_size=3), max_size=12).map("".join)


@all_kinds
@settings(deadline=None, max_examples=150)
@given(text=texts)
def test_text_comes_back_and_bytes_add_up(kind: str, text: str) -> None:
    tokenizer = build(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    assert not {*tokenizer.special_tokens.values()} & {*ids}


@pytest.mark.parametrize("kind", BARE)
@settings(deadline=None, max_examples=50)
@given(text=texts)
def test_reserved_tokens_change_no_id_of_a_text(kind: str, text: str) -> None:
    assert build(f"{kind}, reserved").encode(text) == build(kind).encode(text)


@all_kinds
@settings(deadline=None, max_examples=150)
@given(text=texts)
def test_tokenizers_gives_the_same_ids_and_text(kind: str, text: str) -> None:
    ids = build(kind).encode(text)
    assert build_reference(kind).encode(text).ids == ids
    assert build_reference(kind).decode(ids, skip_special_tokens=False) == text


@all_kinds
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_any_sequence_of_tokens_is_text_that_both_read_alike(kind: str, data: st.DataObject) -> None:
    tokenizer = build(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    text = tokenizer.decode(ids)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert build_reference(kind).encode(text).ids == tokenizer.encode(text)


@all_kinds
def test_transformers_reads_the_artefact(kind: str, tmp_path: Path) -> None:
    tokenizer = build(kind)
    tokenizer.save(tmp_path)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token=END_OF_TEXT)
    text = REAL_TEXT + "don't  , stop . Käse 🙂\r\n"
    assert fast.encode(text) == tokenizer.encode(text)
    assert fast.decode(tokenizer.encode(text)) == text
    assert fast.eos_token_id == tokenizer.end_of_text
    assert fast.encode(f"a{END_OF_TEXT}b") == [*tokenizer.encode("a"), tokenizer.end_of_text, *tokenizer.encode("b")]


@all_kinds
def test_special_tokens_are_special_only_as_ids(kind: str) -> None:
    tokenizer = build(kind)
    for name, token in tokenizer.special_tokens.items():
        assert tokenizer.decode([token]) == name
        assert tokenizer.byte_lengths[token] == 0
        assert tokenizer.decode(tokenizer.encode(name)) == name


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_end_of_text_is_the_last_id_and_reserved_ones_follow(kind: str) -> None:
    added = build_reference(kind).get_added_tokens_decoder()
    assert list(added) == [build(kind).end_of_text] == [build(kind).vocab_size - 1]
    assert build_reference(kind).get_vocab_size() == build(kind).vocab_size
    first, more = build(kind).vocab_size, build_reference(f"{kind}, reserved")
    assert [more.token_to_id(name) for name in [END_OF_TEXT, *RESERVED]] == [*range(first - 1, first + 3)]
    assert more.get_vocab_size() == build(f"{kind}, reserved").vocab_size == first + 3


@pytest.mark.parametrize("kind", BARE)
def test_reserved_tokens_are_special_to_transformers(kind: str, tmp_path: Path) -> None:
    tokenizer = build(f"{kind}, reserved")
    tokenizer.save(tmp_path)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token=END_OF_TEXT)
    user, assistant = (tokenizer.special_tokens[name] for name in RESERVED[:2])
    ids = [user, *tokenizer.encode(" a café"), assistant, *tokenizer.encode("b"), tokenizer.end_of_text]
    assert fast.encode("<|user|> a café<|assistant|>b<|endoftext|>") == ids
    assert fast.decode(ids) == tokenizer.decode(ids) == "<|user|> a café<|assistant|>b<|endoftext|>"
    assert fast.decode(ids, skip_special_tokens=True) == " a caféb"


@pytest.mark.parametrize("kind", BARE)
def test_reserving_goes_on_where_it_was(kind: str) -> None:
    """A token that is there keeps its id, so that a model's tokenizer may be asked for what it has."""
    assert build(kind).reserve([]) is build(kind)
    twice = build(kind).reserve(RESERVED[:1]).reserve(RESERVED)
    assert twice.fingerprint == build(f"{kind}, reserved").fingerprint


@pytest.mark.parametrize(("kind", "name"), [("bpe", "Ġreturn"), ("char", "<0x41>"), ("char", "f"), ("byte", "Ġ")])
def test_an_entry_of_text_cannot_be_reserved(kind: str, name: str) -> None:
    with pytest.raises(ParameterError, match=f"special_tokens: '{name}' is an entry of the vocabulary already"):
        build(kind).reserve([name])


@all_kinds
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d\ude42 \ud83d"])
def test_lone_surrogates_become_replacement_characters(kind: str, text: str) -> None:
    repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert build(kind).decode(build(kind).encode(text)) == repaired


@all_kinds
def test_half_a_character_decodes_to_the_replacement_character(kind: str) -> None:
    *first, _ = build(kind).encode("\U0001f9f8")  # unseen in training, hence four bytes
    assert "\ufffd" in build(kind).decode(first)


@all_kinds
def test_a_batch_is_encoded_text_by_text(kind: str) -> None:
    batch = ["", "one", "two\n", "Käse", "", "🙂" * 50]
    assert [ids.tolist() for ids in build(kind).encode_batch(batch)] == [build(kind).encode(text) for text in batch]


@all_kinds
def test_saved_and_loaded_is_the_same_tokenizer(kind: str, tmp_path: Path) -> None:
    tokenizer = build(kind)
    tokenizer.save(tmp_path / "models")
    loaded = load_tokenizer(tmp_path / "models")
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.kind, loaded.vocab_size, loaded.end_of_text) == (
        tokenizer.kind,
        tokenizer.vocab_size,
        tokenizer.end_of_text,
    )
    assert loaded.encode(REAL_TEXT) == tokenizer.encode(REAL_TEXT)
