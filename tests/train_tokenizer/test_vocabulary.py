"""The size of a vocabulary before its tokenizer is made."""

from pathlib import Path

from tiny import tokenizer_params

from lmcore.tokenizer.pretrained import PUBLISHED_VOCABULARIES, list_pretrained
from lmcore.train_tokenizer.train_tokenizer import expect_vocabulary, train_tokenizer


def test_vocabularies() -> None:
    assert sorted(name for name in PUBLISHED_VOCABULARIES if "/" not in name) == list_pretrained()
    kinds = {"bpe": 300, "byte": 257, "char": 322, "pretrained": 50_257}
    for kind, expected in kinds.items():
        assert expect_vocabulary(tokenizer_params(kind, name="gpt2")) == expected
        reserved = tokenizer_params(kind, name="gpt2", special_tokens=["<|user|>", "<|assistant|>"])
        assert expect_vocabulary(reserved) == (300 if kind == "bpe" else expected + 2)


def test_the_vocabulary_of_a_folder_is_read(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(tokenizer_params("bpe", vocab_size=270), [["the cat sat on the mat"]])
    tokenizer.save(tmp_path)
    params = tokenizer_params("pretrained", name=f"{tmp_path}")
    assert expect_vocabulary(params) == tokenizer.vocab_size
