"""Published encodings, through tiktoken and its cache."""

import re

import tiktoken

from lmcore.errors import ArtifactError
from lmcore.tokenizer.base import END_OF_TEXT
from lmcore.tokenizer.bpe import BpeTokenizer

# Entries of tiktoken's encodings up to the highest that is kept, ordinary or end-of-text; and of models on the hub.
PUBLISHED_VOCABULARIES = {
    "gpt2": 50_257,
    **dict.fromkeys((f"openai-community/gpt2{size}" for size in ("", "-medium", "-large", "-xl")), 50_257),
    "r50k_base": 50_257,
    "p50k_base": 50_281,
    "p50k_edit": 50_281,
    "cl100k_base": 100_258,
    "o200k_base": 200_000,
    "o200k_harmony": 200_000,
}


def list_pretrained() -> list[str]:
    """The names that tiktoken knows: gpt2, r50k_base, cl100k_base, o200k_base and others."""
    return sorted(tiktoken.list_encoding_names())


def fetch_pretrained(name: str) -> BpeTokenizer:
    """A published encoding with its ids, pattern and end-of-text; its other special tokens are left out.

    Raises ArtifactError when it is neither in tiktoken's cache nor to be had from the network.
    """
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
        raise ArtifactError(
            f"the encoding {name}: tiktoken could not fetch it ({' '.join(str(error).split())}): "
            f"connect to the network once, or set TIKTOKEN_CACHE_DIR to a folder that already holds it"
        ) from None
    # tiktoken has no public way to its parts; its README extends encodings through these three.
    return BpeTokenizer.from_ranks(
        encoding._mergeable_ranks, portable_pattern(encoding._pat_str), encoding._special_tokens[END_OF_TEXT]
    )


def portable_pattern(pattern: str) -> str:
    r"""The pattern as both tiktoken and tokenizers read it: \p{N}{1,3}+ -> \p{N}{1,3}.

    In Oniguruma, which tokenizers uses, `{1,3}+` is not possessive but repeats the group. Published patterns have it
    only at the end of an alternative, where possessive and greedy are the same.
    """
    return re.sub(r"(\{\d+,\d+\})\+", r"\1", pattern)
