"""MB of text per second of the prepare stage by number of processes, and its peak memory by size of the corpus.

    python -m benchmarks.prepare [--megabytes 200] [--growth 10 2000]

The corpus is made of the standard library's lines, shuffled by blocks. Each run is a process of its own; contestants
take turns, the rate is of the median. The aim is 30 MB/s per core with the default rules. Corpora of `--growth` MB are
prepared once, to compare the peak memory.
"""

import argparse
import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.corpus import read_library
from benchmarks.timing import alternate, run_apart
from lmcore.files import write_json
from lmcore.prepare.params import PrepareParams
from lmcore.prepare.prepare import prepare
from lmcore.runtime.process_pool import Processes

FILE_BYTES = 20_000_000
LINES = 60  # in a block; a document has one to five


def make_corpus(raw: Path, kind: str, megabytes: int) -> None:
    """Write `raw` as the download stage does: text files of one document each, or JSON lines."""
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
    """Return the seconds, MB of text and peak memory (MB) of one run, in this process and its children."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=raw) as folder, Processes(workers) as executor:
        out, scratch = Path(folder, "out"), Path(folder, "scratch")
        metrics, _ = prepare(PrepareParams(), raw, out, scratch=scratch, executor=executor)
        seconds = time.perf_counter() - start
    peaks = [resource.getrusage(who).ru_maxrss / 1000 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    text = metrics["train_bytes"] + metrics["validation_bytes"]
    return {"seconds": seconds, "megabytes": text / 1e6, "parent": peaks[0], "child": peaks[1]}


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row for each contestant, and the memory of a small and a large corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--growth", type=int, nargs="*", default=[10, 2000], metavar="MEGABYTES")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.run:
        print(json.dumps(run_stage(Path(options.run[0]), int(options.run[1]))))
        return
    run = partial(run_apart, "benchmarks.prepare", "--run")
    with tempfile.TemporaryDirectory() as folder:
        corpora = {kind: Path(folder, kind) for kind in ("text", "jsonl")}
        for kind, raw in corpora.items():
            make_corpus(raw, kind, options.megabytes)
        contestants = [(kind, workers) for kind in corpora for workers in options.processes]
        sides = {(kind, workers): partial(run, corpora[kind], workers) for kind, workers in contestants}
        runs = alternate(sides, options.rounds)
        print(f"{'':8}{'processes':>10}{'MB':>8}{'MB/s':>8}{'best':>8}{'peak MB, main':>15}{'a worker':>10}")
        for (kind, workers), measured in runs.items():
            rates = [each["megabytes"] / each["seconds"] for each in measured]
            last = measured[-1]
            print(
                f"{kind:8}{workers:10}{last['megabytes']:8.0f}{statistics.median(rates):8.1f}{max(rates):8.1f}"
                f"{last['parent']:15.0f}{last['child']:10.0f}"
            )
        for megabytes in options.growth:
            raw = Path(folder, f"growth{megabytes}")
            make_corpus(raw, "jsonl", megabytes)
            print(f"{megabytes} MB, one process: {run(raw, 1)['parent']:.0f} MB at the peak")


if __name__ == "__main__":
    main()
