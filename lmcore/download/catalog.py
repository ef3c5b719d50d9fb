"""The corpora that go by a name: where each comes from, its size, its checksum and its licence."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lmcore.download.local import find_dependency, find_stdlib


@dataclass(frozen=True, kw_only=True)
class Source:
    """One named corpus: at a `url`, or on this machine, where `find` returns a folder and the files below it.

    `bytes` and `documents` are those of the train split as its page tells them. Without a `sha256`, every file is
    verified against the one that the store publishes at the download, and the manifest records it with the commit.
    """

    description: str
    licence: str | None  # None: the user knows
    url: str | None = None
    find: Callable[[], tuple[Path, list[Path]]] | None = None
    version: str | None = None  # of what `find` returns
    sha256: str | None = None
    bytes: int | None = None
    documents: int | None = None
    advice: str | None = None  # what a user has to know before the next stage


CATALOG = {
    "stdlib": Source(
        description="The source files of the running Python's standard library, about 11 MB in 600 files.",
        licence="PSF-2.0",
        find=find_stdlib,
        version=f"{platform.python_implementation()} {platform.python_version()}",
    ),
    "own": Source(description="The files that you put into data/own.", licence=None, find=find_dependency),
    "tinyshakespeare": Source(
        description="Forty thousand lines from Shakespeare's plays in one text, as Karpathy's char-rnn published them.",
        licence="public domain",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        bytes=1_115_394,
        documents=1,
    ),
    "tinystories": Source(
        description="Short stories in the words of a small child, by GPT-3.5 and GPT-4 (Eldan & Li, arXiv:2305.07759).",
        licence="CDLA-Sharing-1.0",
        url="hf://datasets/roneneldan/TinyStories/data/train-*.parquet",
        bytes=991_000_000,
        documents=2_119_719,
    ),
    "wikitext-103": Source(
        description="Good and featured articles of Wikipedia, line by line (Merity et al., arXiv:1609.07843).",
        licence="CC-BY-SA-3.0 and GFDL",
        url="hf://datasets/Salesforce/wikitext/wikitext-103-raw-v1/train-*.parquet",
        bytes=314_000_000,
        documents=1_801_350,
        advice="a document is one line here, and a third are empty: prepare needs prepare.max_rejected_fraction=0.4",
    ),
    "openwebtext": Source(
        description="Pages that Reddit linked to, Gokaslan & Cohen's open copy of the corpus of GPT-2.",
        licence="CC0-1.0",
        url="hf://datasets/Skylion007/openwebtext/plain_text/train-*.parquet",
        bytes=24_200_000_000,
        documents=8_013_769,
    ),
    "fineweb-edu-10bt": Source(
        description="FineWeb-Edu's sample of ten billion tokens of educational web pages (arXiv:2406.17557).",
        licence="ODC-By",
        url="hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT/*.parquet",
        bytes=28_500_000_000,
        documents=9_672_101,
    ),
}
