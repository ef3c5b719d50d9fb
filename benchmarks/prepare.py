"""The prepare stage: MB of text a second by number of processes, and whether memory grows with the corpus.

    python -m benchmarks.prepare [--megabytes 200] [--growth 2000]

The corpus is made of the standard library's lines, shuffled by blocks. Each run is a process of its own; contestants
alternate, the rate is of the median. The aim is 30 MB/s per core with the default rules. `--growth` MB more are
prepared once, to compare the peak memory with that of 10 MB; 0 leaves it out.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.encode import read_library
from lmcore.files import write_json
from lmcore.params import parse_section, read_params
from lmcore.prepare.params import PrepareParams
from lmcore.prepare.prepare import prepare
from lmcore.runtime.process_pool import Processes

ROUNDS = 3
FILE_BYTES = 20_000_000
LINES = 60  # in a block; a document has one to five


def make_corpus(raw: Path, kind: str, megabytes: int) -> None:
    """`raw` as the download stage leaves it: text files of one document each, or JSON lines."""
    lines = [line for text in read_library() for line in text.splitlines(keepends=True)]
    blocks = ["".join(lines[at : at + LINES]) for at in range(0, len(lines), LINES)]
    chance = random.Random(1)
    (raw / "files").mkdir(parents=True)
    entries: list[dict[str, str]] = []
    left = megabytes * 1_000_000
    while left > 0:
        texts, size = list[str](), 0
        while size < min(left, FILE_BYTES):
            texts.append("".join(chance.choices(blocks, k=chance.randrange(1, 6))))
            size += len(texts[-1])
        left -= size
        named = {f"{len(entries):05}.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts)}
        if kind == "text":
            named = {f"{len(entries) + at:06}.txt": text for at, text in enumerate(texts)}
        for name, content in named.items():
            (raw / "files" / name).write_text(content, encoding="utf-8")
            entries.append({"source": kind, "path": name})
    write_json(raw / "manifest.json", {"files": entries})


def run_stage(raw: Path, workers: int) -> dict[str, float]:
    """Seconds, MB of text and peak memory (MB) of one run, in this process and its children."""
    params = parse_section(PrepareParams, "prepare", read_params()["prepare"])
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=raw) as folder, Processes(workers) as executor:
        metrics, _ = prepare(params, raw, Path(folder, "out"), scratch=Path(folder, "scratch"), executor=executor)
        seconds = time.perf_counter() - start
    peaks = [resource.getrusage(who).ru_maxrss / 1000 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    text = metrics["train_bytes"] + metrics["validation_bytes"]
    return {"seconds": seconds, "megabytes": text / 1e6, "parent": peaks[0], "child": peaks[1]}


def run_apart(raw: Path, workers: int) -> dict[str, float]:
    """`run_stage` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.prepare", "--run", str(raw), "--workers", str(workers)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


def main() -> None:
    """Print a row for each contestant, and the memory of a small and a large corpus."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--growth", type=int, default=2000)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run_stage(options.run, options.workers)))
        return
    with tempfile.TemporaryDirectory() as folder:
        corpora = {kind: Path(folder, kind) for kind in ("text", "jsonl")}
        for kind, raw in corpora.items():
            make_corpus(raw, kind, options.megabytes)
        contestants = [(kind, workers) for kind in corpora for workers in (1, 2)]
        runs: dict[tuple[str, int], list[dict[str, float]]] = {contestant: [] for contestant in contestants}
        for _ in range(ROUNDS):
            for kind, workers in contestants:
                runs[kind, workers].append(run_apart(corpora[kind], workers))
        print(f"{'':8}{'processes':>10}{'MB':>8}{'MB/s':>8}{'best':>8}{'peak MB, main':>15}{'a worker':>10}")
        for (kind, workers), measured in runs.items():
            rates = [run["megabytes"] / run["seconds"] for run in measured]
            last = measured[-1]
            print(
                f"{kind:8}{workers:10}{last['megabytes']:8.0f}{statistics.median(rates):8.1f}{max(rates):8.1f}"
                f"{last['parent']:15.0f}{last['child']:10.0f}"
            )
        for megabytes in (10, options.growth) if options.growth else ():
            make_corpus(Path(folder, f"growth{megabytes}"), "jsonl", megabytes)
            measured = [run_apart(Path(folder, f"growth{megabytes}"), 1)]
            print(f"{megabytes} MB, one process: {measured[0]['parent']:.0f} MB at the peak")


if __name__ == "__main__":
    main()
