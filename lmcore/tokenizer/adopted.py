"""Tokenizers that others made: byte-level BPE such as GPT-2's to train with, any other to be compared with."""

import json
import re
from collections.abc import Iterable
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import regex
import tokenizers
from tiktoken_ext import openai_public

from lmcore.errors import ArtifactError
from lmcore.tokenizer.base import END_OF_TEXT, SAMPLE_TEXTS, Ids, define, read_special
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokenizer.byte import BYTE_LEVEL, BYTES, read_symbols
from lmcore.tokenizer.pretrained import portable_pattern

# What Oniguruma, which tokenizers cuts text with, and tiktoken's regular expressions read alike: classes of characters
# by property or one by one, groups, alternatives, counts. Not ^, $, \w, \b and the like, and not {2,3}+.
PORTABLE = re.compile(r"(\\[pP]\{\w+\}|\\[sSrnt]|\\[^\w\s]|\[\^?|\(\?(i?:|!)|\(|[^\\\[(^$}]|\}(?!\+))*")


# Vocabulary and merges in two files, as GPT-2 came and as Hugging Face named them; pieces are cut as GPT-2 does.
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
GPT2_CUT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def find_pair(folder: Path) -> tuple[Path, Path] | None:
    """The vocabulary and the merges in `folder`, if they are there as two files."""
    pairs = ((folder / vocabulary, folder / merges) for vocabulary, merges in PAIRS)
    return next((pair for pair in pairs if all(path.exists() for path in pair)), None)


def define_pair(vocabulary: dict[str, int], merges: str) -> dict[str, Any]:
    """The tokenizer.json of GPT-2's two files. Raises LookupError without end-of-text."""
    pairs = [line.split(" ") for line in merges.splitlines() if line and not line.startswith("#version")]
    special = {END_OF_TEXT: vocabulary[END_OF_TEXT]}
    return define(vocabulary, special, merges=pairs, pre_tokenizer=GPT2_CUT, decoder=BYTE_LEVEL)


def adopt_tokenizer(path: Path, definition: Any) -> BpeTokenizer:
    """The BpeTokenizer with the ids of the tokenizer.json `definition`, which lies in the file `path`.

    Of its special tokens end-of-text is kept, and those that follow all else in its vocabulary, as lmcore reserves
    them. Raises ArtifactError, with the reason, where there is no such tokenizer; ValueError and its like for a damaged
    file.
    """
    if obstacle := find_obstacle(definition):
        raise ArtifactError(f"{path} {obstacle}: it must be one that lmcore made, or byte-level BPE like GPT-2's")
    try:
        original = tokenizers.Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # the library has no other
        raise ValueError(error) from None
    special = read_special(definition)
    vocabulary = definition["model"]["vocab"]
    ranks = {symbols: rank for symbols, rank in vocabulary.items() if symbols not in special}
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in definition["model"]["merges"]]
    if not is_ordered(ranks, merges):
        raise ArtifactError(f"{path} has merges that do not follow from its ids, as tiktoken needs them")
    end_of_text = original.token_to_id(END_OF_TEXT)
    assert end_of_text is not None, path
    adopted = BpeTokenizer.from_ranks(
        {read_symbols(symbols): rank for symbols, rank in ranks.items()},
        read_pattern(definition["pre_tokenizer"]) or "",
        end_of_text,
    )
    foreign = ForeignTokenizer(original)
    for text in SAMPLE_TEXTS:
        if adopted.encode(text) != foreign.encode(text):
            raise ArtifactError(f"{path} encodes {text!r} otherwise than tiktoken does by the same ranks")
    listed = {token: content for content, token in special.items() if content in vocabulary}
    return adopted.reserve(listed[token] for token in takewhile(listed.__contains__, count(adopted.vocab_size)))


def find_obstacle(definition: Any) -> str | None:
    """What keeps a parsed tokenizer.json from being a BpeTokenizer, in one phrase."""
    match definition:
        case {"model": {"vocab": dict(vocabulary), "merges": [_, *_]} as model} if BYTES.keys() <= vocabulary.keys():
            for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
                if model.get(setting):
                    return f"has a {setting} of {model[setting]!r}"
        case _:
            return "is not byte-level BPE"
    if definition.get("normalizer"):
        return f"changes the text first (normalizer {definition['normalizer'].get('type')})"
    added = definition.get("added_tokens") or []
    for token in added:
        if not token.get("special", True):
            return f"takes {token['content']!r} out of the text before it is cut"
    if END_OF_TEXT not in {token["content"] for token in added}:
        return f"has no {END_OF_TEXT}"
    if read_pattern(definition.get("pre_tokenizer")) is None:
        return "cuts the text by other rules than one regular expression that tiktoken reads alike"
    return None


def is_ordered(ranks: dict[str, int], merges: list[list[str]]) -> bool:
    """Whether merging by the rank of what comes out, as tiktoken does, is merging by the list.

    It is if the list is in that order, and every token comes out of its own symbols.
    """
    made = [ranks.get("".join(pair), -1) for pair in merges]
    if min(made) < 0 or made != sorted(made):
        return False
    bare = tokenizers.Tokenizer(tokenizers.models.BPE(ranks, [(left, right) for left, right in merges]))
    encodings = bare.encode_batch(list(ranks))
    return all(encoding.ids == [rank] for encoding, rank in zip(encodings, ranks.values(), strict=True))


def read_pattern(pre_tokenizer: Any) -> str | None:
    """The regular expression that cuts a text into pieces, or None if it is done in another way."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False} if pre_tokenizer.get("use_regex", True):
            return portable_pattern(openai_public.r50k_pat_str)  # GPT-2's, in the form that tiktoken gives it
        case {
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ]
        } if is_portable(pattern):
            return pattern
    return None


def is_portable(pattern: str) -> bool:
    """Whether both libraries cut any text by it alike; `\\s++$` at a text's end is known from tiktoken's own."""
    published = pattern.replace(r"\s++$|", "")
    return bool(PORTABLE.fullmatch(published)) and regex.fullmatch(published, "") is None


class ForeignTokenizer:
    """Any tokenizer.json as Hugging Face's library reads it. It need not keep a text: some fold case or white space."""

    def __init__(self, original: tokenizers.Tokenizer) -> None:
        self._original = original
        original.encode_special_tokens = True
        original.no_padding()
        original.no_truncation()
        self.vocab_size: int = original.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""
        ids: list[int] = self._original.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: list[str], threads: int | None = None) -> list[Ids]:  # noqa: ARG002
        """`encode` of each text, as arrays, on one core."""
        return [np.array(self.encode(text), dtype=np.uint32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`."""
        text: str = self._original.decode(list(ids), skip_special_tokens=False)
        return text

    def token_bytes(self, token: int) -> bytes:
        """How the file spells an id."""
        return (self._original.id_to_token(token) or "").encode()


def read_foreign(path: Path) -> ForeignTokenizer | None:
    """The tokenizer.json at `path`, or None where the library reads none there."""
    try:
        return ForeignTokenizer(tokenizers.Tokenizer.from_file(str(path)))
    except Exception:  # the library has no other
        return None
