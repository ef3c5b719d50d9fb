"""Byte-level BPE tokenizers that others made, such as GPT-2's in its Hugging Face folder."""

from pathlib import Path
from typing import Any

import tokenizers
from tiktoken_ext import openai_public

from lmcore.errors import ArtifactError
from lmcore.tokenizer.base import END_OF_TEXT
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokenizer.byte import BYTE_LEVEL, BYTES, read_symbols
from lmcore.tokenizer.pretrained import portable_pattern

# Texts that two readers of one tokenizer must agree on: none, code, every kind of space, other scripts, digits.
SAMPLE_TEXTS = (
    "",
    "Hello, world! It's a test; isn't it?",
    "def area(radius):\n    return 3.14159 * radius ** 2\n\n\n",
    " leading, trailing \t tab\r\n\u00a0no-break  \n ",
    "naïve café, Привет, 世界, नमस्ते, 🙂👩‍👩‍👧",
    "0 12 345 6789 1e-05 0x1F",
)


def adopt_tokenizer(path: Path, definition: Any) -> BpeTokenizer:
    """The BpeTokenizer with the ids of the tokenizer.json `path`, which holds `definition`.

    Of its special tokens only end-of-text is kept. Raises ArtifactError, with the reason, where it is of another kind.
    """
    if obstacle := find_obstacle(definition):
        raise ArtifactError(f"{path} {obstacle}: it must be one that lmcore made, or byte-level BPE like GPT-2's")
    model, special = definition["model"], read_special_tokens(definition)
    ranks = {read_symbols(symbols): rank for symbols, rank in model["vocab"].items() if symbols not in special}
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    made = [ranks[read_symbols("".join(pair))] for pair in pairs]
    if made != sorted(made) or {*made, *(ranks[bytes([byte])] for byte in range(256))} != {*ranks.values()}:
        raise ArtifactError(f"{path} has merges in another order than its ids, which tiktoken merges by")
    pattern = read_pattern(definition["pre_tokenizer"])
    assert pattern is not None, path
    adopted = BpeTokenizer.from_ranks(ranks, pattern, special[END_OF_TEXT])
    original = tokenizers.Tokenizer.from_file(str(path))
    for text in SAMPLE_TEXTS:
        if adopted.encode(text) != original.encode(text, add_special_tokens=False).ids:
            raise ArtifactError(f"{path} encodes {text!r} otherwise than tiktoken does by the same ranks")
    return adopted


def find_obstacle(definition: Any) -> str | None:
    """What keeps a parsed tokenizer.json from being a BpeTokenizer, in one phrase."""
    match definition:
        case {"model": {"vocab": dict(vocabulary), "merges": [_, *_]}} if BYTES.keys() <= vocabulary.keys():
            if definition.get("normalizer"):
                return f"changes the text first (normalizer {definition['normalizer'].get('type')})"
            for token in definition.get("added_tokens", []):
                if not token.get("special", True):
                    return f"takes {token['content']!r} out of the text before it is cut"
            if END_OF_TEXT not in read_special_tokens(definition):
                return f"has no {END_OF_TEXT}"
            if read_pattern(definition.get("pre_tokenizer")) is None:
                return "cuts the text by other rules than one regular expression"
            return None
    return "is not byte-level BPE"


def read_special_tokens(definition: dict[str, Any]) -> dict[str, int]:
    """The id of each token that no text encodes to."""
    return {token["content"]: token["id"] for token in definition.get("added_tokens", [])}


def read_pattern(pre_tokenizer: Any) -> str | None:
    """The regular expression that cuts a text into pieces, or None if it is done in another way."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False} if pre_tokenizer.get("use_regex", True):
            return portable_pattern(openai_public.r50k_pat_str)  # GPT-2's, in the form that tiktoken gives it
        case {"pretokenizers": [{"type": "Split", "pattern": {"Regex": str(pattern)}, **split}, byte_level]}:
            isolated = split.get("behavior") == "Isolated" and not split.get("invert")
            plain = {**BYTE_LEVEL, **byte_level, "trim_offsets": True} == BYTE_LEVEL
            return portable_pattern(pattern) if isolated and plain else None
    return None
