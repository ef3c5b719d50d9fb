"""Characters and bytes as tokens."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokenizer.char import CharTokenizer


def test_characters_come_by_code_point_then_bytes_then_end_of_text() -> None:
    tokenizer = CharTokenizer.train([["b", "a"], ["é🙂"]])
    assert [tokenizer.token_bytes(id_).decode() for id_ in range(4)] == ["a", "b", "é", "🙂"]
    assert [tokenizer.token_bytes(4 + byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert tokenizer.end_of_text == 260 == tokenizer.vocab_size - 1


def test_an_unseen_character_is_its_bytes() -> None:
    tokenizer = CharTokenizer.train([["ab"]])
    assert tokenizer.encode("aéb€") == [0, 2 + 0xC3, 2 + 0xA9, 1, 2 + 0xE2, 2 + 0x82, 2 + 0xAC]


@settings(deadline=None, max_examples=50)
@given(corpus=st.text(max_size=20), text=st.text())
def test_a_seen_character_is_one_token(corpus: str, text: str) -> None:
    tokenizer = CharTokenizer.train([[corpus]])
    assert len(tokenizer.encode(text)) == sum(1 if char in corpus else len(char.encode()) for char in text)


def test_nothing_seen_leaves_the_bytes() -> None:
    tokenizer = CharTokenizer.train([])
    assert tokenizer.vocab_size == 257
    assert tokenizer.encode("é") == list("é".encode())


def test_a_lone_surrogate_in_training_is_no_character() -> None:
    assert CharTokenizer.train([["a\ud800"]]).vocab_size == 1 + 256 + 1


@given(text=st.text())
def test_a_byte_is_its_own_id(text: str) -> None:
    tokenizer = ByteTokenizer.create()
    assert tokenizer.encode(text) == list(text.encode())
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)
