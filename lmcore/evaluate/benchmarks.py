"""The benchmarks that go by a name, with address, checksum and licence; and the files of these and of one's own."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmcore.download.fetch import RemoteFile, fetch_files
from lmcore.download.web import WebFile
from lmcore.errors import ParameterError, suggest
from lmcore.files import named_path, project_root, sha256_file

HUB = "https://huggingface.co/datasets"
ARC = f"{HUB}/allenai/ai2_arc/resolve/210d026faf9955653af8916fad021475a3f00453"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One benchmark as it is published; the split is the one that results are given for."""

    description: str
    licence: str | None  # None: its page names none
    url: str
    sha256: str
    items: int
    bytes: int | None = None


SUITES = {
    "hellaswag": Suite(
        description="How a description of an everyday scene goes on (Zellers et al., arXiv:1905.07830), validation.",
        licence="MIT",
        url="https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
        sha256="0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
        items=10_042,
        bytes=12_246_618,
    ),
    "piqa": Suite(
        description="Which of two ways works in the physical world (Bisk et al., arXiv:1911.11641), validation.",
        licence=None,
        url=f"{HUB}/baber/piqa/resolve/142f6d7367fd9877f0fb3b5734ea6a545f54cdd1/piqa_validation.parquet",
        sha256="2b17ee1215b1ceb2ddabf4c90a05c5a8b833bef9d207960f57d111c43a2080f3",
        items=1_838,
    ),
    "arc_easy": Suite(
        description="School science questions (Clark et al., arXiv:1803.05457), the easy set, test.",
        licence="CC-BY-SA-4.0",
        url=f"{ARC}/ARC-Easy/test-00000-of-00001.parquet",
        sha256="4160597d618ae851c7eb04e281574f3f654776216ac6b6641588d64527b47177",
        items=2_376,
    ),
    "arc_challenge": Suite(
        description="Those of them that counting words does not answer, test.",
        licence="CC-BY-SA-4.0",
        url=f"{ARC}/ARC-Challenge/test-00000-of-00001.parquet",
        sha256="62f03257e737aed263f55c6abf87c7bb0028a44a6bdd2a26eb1279eb42c1d1e9",
        items=1_172,
        bytes=203_808,
    ),
    "lambada_openai": Suite(
        description="The last word of a passage (Paperno et al., arXiv:1606.06031), test, as prepared for GPT-2.",
        licence="MIT",
        url="https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
        sha256="4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
        items=5_153,
        bytes=1_819_752,
    ),
}


@dataclass(frozen=True)
class SuiteFile:
    """A benchmark on this machine: `name` is what the metrics call it."""

    name: str
    path: Path
    sha256: str


def check_suites(suites: Sequence[str]) -> None:
    """Raise ValueError for an entry that is neither a name nor a path, and for two that would have one name."""
    names: dict[str, str] = {}
    for at, entry in enumerate(suites):
        if entry not in SUITES and Path(entry).suffix not in {".jsonl", ".parquet"}:
            known = f"a .jsonl or .parquet file, or one of {', '.join(SUITES)}"
            raise ValueError(f"evaluate.suites[{at}]={entry!r}:{suggest(entry, SUITES)} must be {known}")
        name = _name(entry)
        if name in names:
            raise ValueError(f"evaluate.suites: {names[name]} and {entry} would both be called {name!r}: rename one")
        names[name] = entry


def open_suites(suites: Sequence[str]) -> list[SuiteFile]:
    """The file of every entry, those of the catalogue fetched into .cache/suites unless they are there.

    Raises ParameterError for a file that does not exist, DataError where a download fails or is not what it should be.
    """
    cache = project_root() / ".cache" / "suites"
    paths = [_find_path(entry, cache) for entry in suites]
    for entry, path in zip(suites, paths, strict=True):
        if entry not in SUITES and not path.is_file():
            raise ParameterError(f"evaluate.suites: {path} is no file; a relative path begins at dvc.yaml's folder")
    missing = {
        path: SUITES[entry]
        for entry, path in zip(suites, paths, strict=True)
        if entry in SUITES and not (path.is_file() and sha256_file(path) == SUITES[entry].sha256)
    }
    if missing:
        _fetch(missing, cache)
    return [SuiteFile(_name(entry), path, sha256_file(path)) for entry, path in zip(suites, paths, strict=True)]


def _fetch(missing: dict[Path, Suite], cache: Path) -> None:
    files = [
        RemoteFile(url=suite.url, origin=WebFile(suite.url), bytes=suite.bytes, sha256=suite.sha256)
        for suite in missing.values()
    ]
    with fetch_files(files, project_root() / ".cache" / "downloads") as arrivals:
        cache.mkdir(parents=True, exist_ok=True)
        for path, arrival in zip(missing, arrivals, strict=True):
            shutil.move(arrival.path, path)


def _find_path(entry: str, cache: Path) -> Path:
    """Where the file of an entry is, or is going to be."""
    if entry not in SUITES:
        return named_path(entry)
    return cache / (entry + Path(SUITES[entry].url).suffix)


def _name(entry: str) -> str:
    """Of characters that MLflow takes for a metric."""
    return entry if entry in SUITES else re.sub("[^A-Za-z0-9._-]+", "-", Path(entry).stem)
