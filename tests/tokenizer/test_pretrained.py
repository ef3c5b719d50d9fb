"""Published encodings, with tiktoken's own patterns and special tokens over small ranks: no network."""

from functools import cache
from pathlib import Path

import pytest
import requests
import tiktoken
import tiktoken_ext.openai_public
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tokenizer_params

from lmcore.errors import ArtifactError
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokenizer.pretrained import fetch_pretrained, list_pretrained, portable_pattern
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

END_OF_TEXT_IDS = {"gpt2": 50256, "r50k_base": 50256, "cl100k_base": 100257, "o200k_base": 199999}
TEXT = "Hello, WORLD's  12345 tests!\n\n\n  it'S über\tKäse   \r\n 你好 ١٢٣٤٥ <|endoftext|> x=1;;\n/  "

words = st.sampled_from([*TEXT.split(" "), " ", "\n", "\r\n", "1", "'ll"])
texts = st.lists(words | st.text(), max_size=9).map("".join)


@cache
def small_ranks() -> dict[bytes, int]:
    trained = BpeTokenizer.train([[TEXT * 3, "12345 123 1234 " * 5]], 400)
    return {trained.token_bytes(rank): rank for rank in range(trained.end_of_text)}


def published_encoding(name: str) -> tiktoken.Encoding:
    """A published encoding as it is, but for its ranks, which would be a download."""
    with pytest.MonkeyPatch.context() as patch:
        for loader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
            patch.setattr(tiktoken_ext.openai_public, loader, lambda *_, **__: dict(small_ranks()))
        parts = getattr(tiktoken_ext.openai_public, name)()
    parts.pop("explicit_n_vocab", None)
    return tiktoken.Encoding(**parts)


@cache
def build(name: str) -> BpeTokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken, "get_encoding", published_encoding)
        return train_tokenizer(tokenizer_params("pretrained", name=name), [])


@pytest.mark.parametrize("name", END_OF_TEXT_IDS)
@settings(deadline=None, max_examples=60)
@given(text=texts)
def test_ids_are_those_of_tiktoken_and_of_tokenizers(name: str, text: str) -> None:
    reference = tokenizers.Tokenizer.from_buffer(build(name).artefact)
    reference.encode_special_tokens = True
    ids = published_encoding(name).encode_ordinary(text)
    assert build(name).encode(text) == ids == reference.encode(text).ids
    assert build(name).decode(ids) == text == reference.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", END_OF_TEXT_IDS)
def test_end_of_text_keeps_its_published_id(name: str, tmp_path: Path) -> None:
    tokenizer = build(name)
    assert tokenizer.end_of_text == END_OF_TEXT_IDS[name] == tokenizer.vocab_size - 1
    assert tokenizers.Tokenizer.from_buffer(tokenizer.artefact).encode("<|endoftext|>").ids == [tokenizer.end_of_text]
    assert tokenizer.token_bytes(1000) == b""  # a gap
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).encode(TEXT) == tokenizer.encode(TEXT)


def test_possessive_counts_are_made_portable() -> None:
    assert portable_pattern(r"\p{N}{1,3}+| ?\p{L}++|\s++$") == r"\p{N}{1,3}| ?\p{L}++|\s++$"


def test_names_are_tiktoken_s() -> None:
    assert set(END_OF_TEXT_IDS) <= set(list_pretrained())


@pytest.mark.parametrize(
    ("published", "reason"),
    [(requests.ConnectionError("Name or service\nnot known"), "Name or service not known"), (b"?", "Hash mismatch")],
)
def test_no_network_is_one_line_with_the_way_out(
    published: bytes | Exception, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def read_file(_: str) -> bytes:
        if isinstance(published, Exception):
            raise published
        return published

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setattr(tiktoken.load, "read_file", read_file)
    with pytest.raises(
        ArtifactError, match=f"the encoding r50k_base: tiktoken could not fetch it .*{reason}.*TIKTOKEN_CACHE_DIR"
    ) as caught:
        fetch_pretrained("r50k_base")
    assert "\n" not in str(caught.value)
