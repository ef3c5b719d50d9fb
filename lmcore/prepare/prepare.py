"""Raw files to clean documents: checked against the schema, freed of duplicates, split in two.

Twice through the text, both times many units side by side: once to see what there is, and, after a verdict over the
whole corpus, once to write what stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.errors import ArtifactError, DataError
from lmcore.files import copy_fast, read_json, save_array, write_folder, write_json
from lmcore.prepare.contamination import collect_evaluation
from lmcore.prepare.dedup import Judge
from lmcore.prepare.documents import Document, DocumentWriter, batch, list_parts
from lmcore.prepare.overlap import collect_sequences, measure_overlaps
from lmcore.prepare.params import PrepareParams
from lmcore.prepare.readers import Layout
from lmcore.prepare.scan import read_normalised, survey_unit
from lmcore.prepare.split import HashSplit, TailSplit
from lmcore.prepare.units import REMEDY, Unit, list_units
from lmcore.runtime.process_pool import HERE, Executor
from lmcore.runtime.progress import BytesProgress
from lmcore.runtime.scratch import reserve

SPLITS = ("train", "validation")
LIMITS = {"max_rejected_fraction", "max_leakage", "contamination"}  # of the whole: no unit depends on them


@dataclass(frozen=True)
class Selection:
    """What to write of a unit: the documents that `stays`, an array in a file, marks, divided by `split`."""

    unit: Unit
    stays: Path
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
    units = list_units(raw, Layout(params.text_field, params.separator))
    work = [params.model_dump(exclude=LIMITS), read_json(raw / "manifest.json", REMEDY)]
    with reserve(scratch, work) as place, write_folder(folder) as new:
        selections, judge = select_documents(units, params, new / "rejected.parquet", place, executor)
        counts = write_documents(selections, params, new, place, executor)
        for name, split in zip(("training", "validation"), SPLITS, strict=True):
            if not counts[split]["documents"]:
                raise DataError(explain_empty(name, params))
        train, validation = (list_parts(new / split) for split in SPLITS)
        metrics: dict[str, Any] = {
            "documents": judge.documents,
            "kept": judge.kept,
            "rejected": dict(sorted(judge.rejected.items())),
            "duplicates": judge.duplicates.total(),
            **({} if params.near_duplicates is None else {"near_duplicates": judge.duplicates["near_duplicate"]}),
            **{f"{split}_documents": counts[split]["documents"] for split in SPLITS},
            **{f"{split}_bytes": counts[split]["bytes"] for split in SPLITS},
            **measure_overlaps({"leakage": collect_sequences(validation, executor), **sought}, train, place, executor),
        }
        if params.max_leakage is not None and metrics["leakage"] > params.max_leakage:
            raise DataError(
                f"{metrics['leakage']:.2%} of validation's sequences of 13 words occur in the training text, more than "
                f"prepare.max_leakage={params.max_leakage:g} allows: remove near copies (prepare.near_duplicates), or "
                f"raise that limit"
            )
    return metrics, dict(sorted(judge.lengths.items()))


def select_documents(
    units: Sequence[Unit], params: PrepareParams, listing: Path, place: Path, executor: Executor
) -> tuple[list[Selection], Judge]:
    """Which documents of each unit stay, the others listed in `listing`, and the account of all."""
    chosen: list[tuple[Unit, Path, int, int]] = []
    sizes = [unit.size for unit in units]
    with Judge(params, listing, place) as judge, BytesProgress("prepare: checking", sum(sizes)) as progress:
        surveys = executor.map(partial(survey_unit, params=params, place=place), units)
        for unit, survey in zip(units, progress.follow(surveys, sizes), strict=True):
            stays, begin, size = place / f"stays-{unit.number:06d}.npy", judge.kept_characters, judge.kept_bytes
            save_array(stays, judge.judge(survey))
            chosen.append((unit, stays, judge.kept_bytes - size, begin))
    judge.require_enough()
    if params.split == "hash":
        split = HashSplit(params.validation_fraction)
        return [Selection(unit, stays, size, split) for unit, stays, size, _ in chosen], judge
    cut = TailSplit.find_cut(judge.kept_characters, params.validation_fraction)
    return [Selection(unit, stays, size, TailSplit(cut, begin)) for unit, stays, size, begin in chosen], judge


def write_documents(
    selections: Sequence[Selection], params: PrepareParams, folder: Path, place: Path, executor: Executor
) -> dict[str, dict[str, int]]:
    """The parts of both splits in `folder`, numbered in order. Returns documents and bytes of each."""
    counts = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
    sizes = [selection.unit.size for selection in selections]
    for split in SPLITS:
        (folder / split).mkdir()
    numbers = dict.fromkeys(SPLITS, 0)
    with BytesProgress("prepare: writing", sum(sizes)) as progress:
        written = executor.map(partial(write_unit, params=params, place=place), selections)
        for unit_folder in progress.follow(written, sizes):
            unit_counts = read_json(unit_folder / "counts.json", "run the same command again")
            for split in SPLITS:
                for part in sorted((unit_folder / split).iterdir()):
                    copy_fast(part, folder / split / f"part-{numbers[split]:05d}.parquet")
                    numbers[split] += 1
                for unit in counts[split]:
                    counts[split][unit] += unit_counts[split][unit]
    return counts


def write_unit(selection: Selection, *, params: PrepareParams, place: Path) -> Path:
    """The folder below `place` with the unit's parts of both splits and counts.json, made unless it is there.

    Raises ArtifactError when the text is no longer what the survey saw.
    """
    unit = selection.unit
    folder = place / f"documents-{unit.number:06d}"
    if folder.exists():
        return folder
    stays = np.load(selection.stays)
    seen = 0
    with write_folder(folder) as new:
        writers = {split: DocumentWriter(new / split, unit.source) for split in SPLITS}
        with writers["train"], writers["validation"]:
            for items in batch(read_normalised(unit, params)):
                marks = stays[seen : seen + len(items)].tolist()
                seen += len(items)
                chosen = [item for item, mark in zip(items, marks, strict=False) if mark and isinstance(item, Document)]
                for split, some in zip(SPLITS, selection.split.split(chosen), strict=True):
                    writers[split].write(some)
        if (seen, sum(writer.bytes for writer in writers.values())) != (len(stays), selection.size):
            raise ArtifactError(f"{unit.describe_files()} changed while the stage ran: {REMEDY}")
        counts = {split: {"documents": writer.documents, "bytes": writer.bytes} for split, writer in writers.items()}
        write_json(new / "counts.json", counts)
    return folder


def explain_empty(name: str, params: PrepareParams) -> str:
    """What to do about a split without text."""
    return (
        f"no text is left for {name} with prepare.split={params.split} and prepare.validation_fraction="
        f"{params.validation_fraction:g}: choose another fraction"
        + (", or prepare.split=tail, which cuts inside a document" if params.split == "hash" else "")
    )
