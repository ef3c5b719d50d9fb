"""Our tokenizers in llama.cpp's terms: vocabulary, merges, and which of its pre-tokenizers cuts as ours does."""

import json
from collections.abc import Container
from typing import Any, NamedTuple

from lmcore.errors import ParameterError
from lmcore.runtime.progress import warn
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokenizer.bpe import write_pattern
from lmcore.tokenizer.char import FALLBACK

NORMAL, CONTROL, UNUSED, BYTE = 1, 3, 5, 6  # llama.cpp's types of tokens
SPACE = "\u2581"  # how llama.cpp's SentencePiece model writes a space
NEVER_MERGED = "ÿ ÿ"  # llama.cpp wants merges; two bytes 0xFF are in no UTF-8


class PreTokenizer(NamedTuple):
    """A pre-tokenizer that llama.cpp knows by `name`, and what it `cuts_otherwise`, if anything."""

    name: str
    cuts_otherwise: str | None = None


# What follows the numbers in several published patterns, and in llama.cpp's two. Ours and cl100k_base's end lines with
# `\s*[\r\n]` instead of `\s*[\r\n]+`, which is the same: white space is taken up to its last line end.
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|"
    r"\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
# The pattern of a tokenizer -> the name in llama.cpp's src/llama-vocab.cpp.
PRE_TOKENIZERS = {
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s": PreTokenizer("gpt-2"),
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": PreTokenizer("gpt-2"),
    write_pattern(1): PreTokenizer("qwen2"),
    write_pattern(2): PreTokenizer("llama-bpe", "numbers of three digits and more"),
    write_pattern(3): PreTokenizer("llama-bpe"),
    WORDS + r"|\p{N}" + REST: PreTokenizer("qwen2"),
    WORDS + r"|\p{N}{1,3}" + REST: PreTokenizer("llama-bpe"),
    CL100K: PreTokenizer("llama-bpe", "white space at the end of a text"),
}


def add_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    """The keys of the tokenizer. Says what llama.cpp cuts otherwise; raises ParameterError where it has none such."""
    if tokenizer.kind == "char":
        _add_characters(writer, tokenizer)
    else:
        _add_merges(writer, tokenizer)
    writer.add_bos_token_id(tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def find_pre_tokenizer(pattern: str) -> PreTokenizer:
    """The one that cuts as `pattern` does, or nearly. Raises ParameterError for none."""
    found = PRE_TOKENIZERS.get(pattern)
    if found is None:
        raise ParameterError(
            f"export.gguf: llama.cpp knows pre-tokenizers by name, and none that cuts a text as this tokenizer does "
            f"({pattern}): leave it empty, or train a tokenizer with train_tokenizer.digits=3"
        )
    return found


def _add_merges(writer: Any, tokenizer: Tokenizer) -> None:
    """Byte-level BPE, or bytes as they are: llama.cpp's model `gpt2`."""
    definition = json.loads(tokenizer.artefact)
    if tokenizer.kind == "byte":
        split = PreTokenizer("gpt-2")  # any will do, for lack of merges
    else:
        split = find_pre_tokenizer(definition["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"])
    if split.cuts_otherwise:
        warn(f"llama.cpp cuts {split.cuts_otherwise} otherwise than this tokenizer: its nearest is {split.name}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split.name)
    _add_tokens(writer, tokenizer, {token: symbol for symbol, token in definition["model"]["vocab"].items()}, ())
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in definition["model"]["merges"]]
    writer.add_token_merges(merges or [NEVER_MERGED])


def _add_characters(writer: Any, tokenizer: Tokenizer) -> None:
    """Characters, and bytes for those that are none: llama.cpp's model `llama`, which is SentencePiece's."""
    # Characters come first, then the 256 bytes, some of which are characters too, then the special tokens.
    first_byte = tokenizer.vocab_size - len(tokenizer.special_tokens) - len(FALLBACK)
    names = {token: tokenizer.token_bytes(token).decode().replace(" ", SPACE) for token in range(first_byte)}
    bytes_ = range(first_byte, first_byte + len(FALLBACK))
    names |= dict(zip(bytes_, FALLBACK, strict=True))
    names |= {token: name for name, token in tokenizer.special_tokens.items()}
    if list(names.values()).count(SPACE) != 1 or len(set(names.values())) < len(names):
        raise ParameterError(
            f"export.gguf: llama.cpp writes a space as {SPACE} (U+2581), and this tokenizer has both as characters, or "
            f"has no space: leave it empty"
        )
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    _add_tokens(writer, tokenizer, names, bytes_)
    writer.add_token_scores([0.0] * tokenizer.vocab_size)
    writer.add_unk_token_id(tokenizer.end_of_text)
    writer.add_add_space_prefix(False)


def _add_tokens(writer: Any, tokenizer: Tokenizer, names: dict[int, str], bytes_: Container[int]) -> None:
    """The list of tokens by id, and their types; ids that stand for nothing have a name too."""
    special = set(tokenizer.special_tokens.values())
    tokens, types = [], []
    for token in range(tokenizer.vocab_size):
        tokens.append(names.get(token, f"[UNUSED{token}]"))
        kind = CONTROL if token in special else BYTE if token in bytes_ else NORMAL
        types.append(kind if token in names else UNUSED)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
