"""Raw files to clean documents, in three steps: scan, deduplicate, write.

Scanning and writing read the text, many chunks of it side by side; deduplication goes through the rows that the scan
made, in the order of the corpus.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.errors import ArtifactError, DataError
from lmcore.files import copy_fast, read_json, save_array, write_folder, write_json
from lmcore.prepare.chunks import REMEDY, Chunk, list_chunks
from lmcore.prepare.contamination import collect_evaluation
from lmcore.prepare.dedup import Deduplicator
from lmcore.prepare.documents import Document, DocumentWriter, batch, list_parts
from lmcore.prepare.overlap import collect_sequences, measure_overlaps
from lmcore.prepare.params import PrepareParams
from lmcore.prepare.raw_files import Layout
from lmcore.prepare.scan import read_normalised, scan_chunk
from lmcore.prepare.split import HashSplit, TailSplit
from lmcore.runtime.process_pool import HERE, Executor
from lmcore.runtime.progress import BytesProgress
from lmcore.runtime.scratch import reserve

SPLITS = ("train", "validation")
LIMITS = {"max_rejected_fraction", "max_leakage", "contamination"}  # of the whole: no chunk depends on them


@dataclass(frozen=True)
class Selection:
    """The documents of a chunk to write: those that `marks`, an array in a file, marks, divided by `split`."""

    chunk: Chunk
    marks: Path
    size: int  # bytes of these documents
    split: HashSplit | TailSplit


def prepare(
    params: PrepareParams, raw: Path, folder: Path, *, scratch: Path, executor: Executor = HERE
) -> tuple[dict[str, Any], dict[int, int]]:
    """Make `folder`: {train,validation}/part-*.parquet with the kept documents, rejected.parquet with the others.

    What is done waits in `scratch`: a killed stage goes on from there. The result depends on the text and on `params`
    alone. Returns the stage's metrics, and how many of the kept documents have from so many characters to twice as
    many, by that power of two. Memory does not grow with the corpus. Raises DataError when too much is rejected,
    nothing is kept, a split is empty, or too much of the validation text occurs in the training text; nothing is
    written then.
    """
    name = params.contamination
    sought = {} if name is None else {"contamination": collect_evaluation(name, executor)}
    chunks = list_chunks(raw, Layout(params.text_field, params.separator))
    work = [params.model_dump(exclude=LIMITS), read_json(raw / "manifest.json", REMEDY)]
    with reserve(scratch, work) as place, write_folder(folder) as new:
        with Deduplicator(params, new / "rejected.parquet", place) as account:
            scanned = scan(chunks, params, place, executor)
            selections = deduplicate(scanned, params, account, place)
        counts = write(selections, params, new, place, executor)
        metrics: dict[str, Any] = {
            "documents": account.documents,
            "kept": account.kept,
            "rejected": dict(sorted(account.rejected.items())),
            "duplicates": account.duplicates.total(),
            **({} if params.near_duplicates is None else {"near_duplicates": account.duplicates["near_duplicate"]}),
            **{f"{split}_{unit}": counts[split][unit] for unit in ("documents", "bytes") for split in SPLITS},
        }
        train, validation = (list_parts(new / split) for split in SPLITS)
        samples = {"leakage": collect_sequences(validation, executor), **sought}
        metrics |= measure_overlaps(samples, train, place, executor)
        if params.max_leakage is not None and metrics["leakage"] > params.max_leakage:
            raise DataError(
                f"{metrics['leakage']:.2%} of validation's sequences of 13 words occur in the training text, more than "
                f"prepare.max_leakage={params.max_leakage:g} allows: remove near copies (prepare.near_duplicates), or "
                f"raise that limit"
            )
    return metrics, dict(sorted(account.lengths.items()))


def scan(
    chunks: Sequence[Chunk], params: PrepareParams, place: Path, executor: Executor
) -> Iterator[tuple[Chunk, Path]]:
    """Check the documents of each chunk by themselves; yield the chunks in order, with the file of what was found."""
    sizes = [chunk.size for chunk in chunks]
    with BytesProgress("prepare: scanning", sum(sizes)) as progress:
        scans = executor.map(partial(scan_chunk, params=params, place=place), chunks)
        yield from zip(chunks, progress.follow(scans, sizes), strict=True)


def deduplicate(
    scanned: Iterable[tuple[Chunk, Path]], params: PrepareParams, account: Deduplicator, place: Path
) -> list[Selection]:
    """Return the documents of each chunk to write, as `account` selects them. Raises DataError where it has too few."""
    chosen = []
    for chunk, rows in scanned:
        marks = place / f"marks-{chunk.number:06d}.npy"
        characters, size = account.kept_characters, account.kept_bytes
        save_array(marks, account.select(rows))
        chosen.append((chunk, marks, account.kept_bytes - size, characters))
    account.require_enough()
    fraction = params.validation_fraction
    cut = TailSplit.find_cut(account.kept_characters, fraction)
    return [
        Selection(chunk, marks, size, HashSplit(fraction) if params.split == "hash" else TailSplit(cut, begin))
        for chunk, marks, size, begin in chosen
    ]


def write(
    selections: Sequence[Selection], params: PrepareParams, folder: Path, place: Path, executor: Executor
) -> dict[str, Counter[str]]:
    """Write the parts of both splits in `folder`, numbered in order. Returns documents and bytes of each split.

    Raises DataError for a split without documents.
    """
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    sizes = [selection.chunk.size for selection in selections]
    numbers = dict.fromkeys(SPLITS, 0)
    for split in SPLITS:
        (folder / split).mkdir()
    with BytesProgress("prepare: writing", sum(sizes)) as progress:
        written = executor.map(partial(write_chunk, params=params, place=place), selections)
        for chunk_folder in progress.follow(written, sizes):
            chunk_counts = read_json(chunk_folder / "counts.json", "run the same command again")
            for split in SPLITS:
                for part in sorted((chunk_folder / split).iterdir()):
                    copy_fast(part, folder / split / f"part-{numbers[split]:05d}.parquet")
                    numbers[split] += 1
                counts[split].update(chunk_counts[split])
    for name, split in zip(("training", "validation"), SPLITS, strict=True):
        if not counts[split]["documents"]:
            raise DataError(
                f"no text is left for {name} with prepare.split={params.split} and prepare.validation_fraction="
                f"{params.validation_fraction:g}: choose another fraction"
                + (", or prepare.split=tail, which cuts inside a document" if params.split == "hash" else "")
            )
    return counts


def write_chunk(selection: Selection, *, params: PrepareParams, place: Path) -> Path:
    """Return the folder below `place` with the chunk's parts of both splits and counts.json, made unless it is there.

    Raises ArtifactError when the text is no longer what was scanned.
    """
    chunk = selection.chunk
    folder = place / f"documents-{chunk.number:06d}"
    if folder.exists():
        return folder
    marks = np.load(selection.marks)
    seen = 0
    with write_folder(folder) as new:
        writers = {split: DocumentWriter(new / split, chunk.source) for split in SPLITS}
        with writers["train"], writers["validation"]:
            for items in batch(read_normalised(chunk, params)):
                kept = marks[seen : seen + len(items)].tolist()
                seen += len(items)
                chosen = [item for item, mark in zip(items, kept, strict=False) if mark and isinstance(item, Document)]
                for split, some in zip(SPLITS, selection.split.split(chosen), strict=True):
                    writers[split].write(some)
        if (seen, sum(writer.bytes for writer in writers.values())) != (len(marks), selection.size):
            first, last = chunk.files[0].path, chunk.files[-1].path
            changed = first if first == last else f"a file from {first} to {last}"
            raise ArtifactError(f"{changed} changed while the stage ran: {REMEDY}")
        counts = {split: {"documents": writer.documents, "bytes": writer.bytes} for split, writer in writers.items()}
        write_json(new / "counts.json", counts)
    return folder
