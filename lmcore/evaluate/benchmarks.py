"""The catalogue of benchmarks, and the files of these and of the user's own."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmcore.download.fetch import RemoteFile, fetch_files
from lmcore.download.web import WebFile
from lmcore.errors import ParameterError, suggest
from lmcore.evaluate.benchmark_formats import ARC, HELLASWAG, LAMBADA, PIQA, PLAIN, RecordFormat
from lmcore.files import named_path, project_root, sha256_file

HUB = "https://huggingface.co/datasets"
ARC_URL = f"{HUB}/allenai/ai2_arc/resolve/210d026faf9955653af8916fad021475a3f00453"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark as published, in the split for which results are reported."""

    description: str
    licence: str | None  # None: its page names none
    format: RecordFormat
    url: str
    sha256: str
    items: int
    bytes: int | None = None


# A further benchmark is an entry here; a further format of records is a reader in benchmark_formats.
BENCHMARKS = {
    "hellaswag": Benchmark(
        description="the next sentence of an everyday scene (Zellers et al., arXiv:1905.07830), validation",
        format=HELLASWAG,
        licence="MIT",
        url="https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
        sha256="0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
        items=10_042,
        bytes=12_246_618,
    ),
    "piqa": Benchmark(
        description="the one of two ways that works in the physical world (Bisk et al., arXiv:1911.11641), validation",
        format=PIQA,
        licence=None,
        url=f"{HUB}/baber/piqa/resolve/142f6d7367fd9877f0fb3b5734ea6a545f54cdd1/piqa_validation.parquet",
        sha256="2b17ee1215b1ceb2ddabf4c90a05c5a8b833bef9d207960f57d111c43a2080f3",
        items=1_838,
    ),
    "arc_easy": Benchmark(
        description="school science questions (Clark et al., arXiv:1803.05457), the easy set, test",
        format=ARC,
        licence="CC-BY-SA-4.0",
        url=f"{ARC_URL}/ARC-Easy/test-00000-of-00001.parquet",
        sha256="4160597d618ae851c7eb04e281574f3f654776216ac6b6641588d64527b47177",
        items=2_376,
    ),
    "arc_challenge": Benchmark(
        description="those of them that counting words does not answer, test",
        format=ARC,
        licence="CC-BY-SA-4.0",
        url=f"{ARC_URL}/ARC-Challenge/test-00000-of-00001.parquet",
        sha256="62f03257e737aed263f55c6abf87c7bb0028a44a6bdd2a26eb1279eb42c1d1e9",
        items=1_172,
        bytes=203_808,
    ),
    "lambada_openai": Benchmark(
        description="the last word of a passage (Paperno et al., arXiv:1606.06031), test, as prepared for GPT-2",
        format=LAMBADA,
        licence="MIT",
        url="https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
        sha256="4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
        items=5_153,
        bytes=1_819_752,
    ),
}


@dataclass(frozen=True)
class BenchmarkFile:
    """A benchmark on this machine, with its name in the metrics."""

    name: str
    path: Path
    sha256: str
    formats: Sequence[RecordFormat] = field(default_factory=lambda: list_formats())


def list_formats() -> list[RecordFormat]:
    """Return the formats that a file of the user's own may have."""
    return list(dict.fromkeys([PLAIN, *(benchmark.format for benchmark in BENCHMARKS.values())]))


def check_suites(suites: Sequence[str]) -> None:
    """Raise ValueError for an entry that is neither a name nor a path, and for two that would have one name."""
    names: dict[str, str] = {}
    for at, entry in enumerate(suites):
        if entry not in BENCHMARKS and Path(entry).suffix not in {".jsonl", ".parquet"}:
            known = f"a .jsonl or .parquet file, or one of {', '.join(BENCHMARKS)}"
            raise ValueError(f"evaluate.suites[{at}]={entry!r}:{suggest(entry, BENCHMARKS)} must be {known}")
        name = _name(entry)
        if name in names:
            raise ValueError(f"evaluate.suites: {names[name]} and {entry} would both be called {name!r}: rename one")
        names[name] = entry


def open_benchmarks(suites: Sequence[str]) -> list[BenchmarkFile]:
    """Return the file of every entry, fetching those of the catalogue into .cache/suites where they are missing.

    Raises ParameterError for a file that does not exist, DataError where a download fails or has another checksum.
    """
    cache = project_root() / ".cache" / "suites"
    paths = {entry: named_path(entry) for entry in suites if entry not in BENCHMARKS}
    for path in paths.values():
        if not path.is_file():
            raise ParameterError(f"evaluate.suites: {path} is no file; a relative path begins at dvc.yaml's folder")
    named = {entry: BENCHMARKS[entry] for entry in suites if entry in BENCHMARKS}
    paths |= {entry: cache / (entry + Path(benchmark.url).suffix) for entry, benchmark in named.items()}
    _fetch(
        {
            paths[entry]: benchmark
            for entry, benchmark in named.items()
            if not (paths[entry].is_file() and sha256_file(paths[entry]) == benchmark.sha256)
        }
    )
    return [
        BenchmarkFile(
            _name(entry),
            paths[entry],
            sha256_file(paths[entry]),
            [named[entry].format] if entry in named else list_formats(),
        )
        for entry in suites
    ]


def _fetch(missing: dict[Path, Benchmark]) -> None:
    files = [
        RemoteFile(url=benchmark.url, origin=WebFile(benchmark.url), bytes=benchmark.bytes, sha256=benchmark.sha256)
        for benchmark in missing.values()
    ]
    with fetch_files(files, project_root() / ".cache" / "downloads") as arrivals:
        for path, arrival in zip(missing, arrivals, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(arrival.path, path)


def _name(entry: str) -> str:
    """Return a name of characters that MLflow permits in a metric."""
    return entry if entry in BENCHMARKS else re.sub("[^A-Za-z0-9._-]+", "-", Path(entry).stem)
