"""Models that lie outside the pipeline, as a folder that was sent: what their own files say of where they come from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmcore.errors import ArtifactError
from lmcore.files import read_json, sha256_file
from lmcore.lineage.find_state import read_key
from lmcore.lineage.lock import LOCK
from lmcore.lineage.provenance import (
    CARD,
    LINEAGE,
    MODEL,
    TOKENIZER_FILE,
    compute_key,
    is_lineage,
    list_origins,
    read_card,
)
from lmcore.lineage.remedy import Mismatch

REMEDY = "copy the folder anew"


@dataclass
class Copy:
    """What a folder says of itself: `key` of the run, if it names one; `records` as a trace has them."""

    key: str | None = None
    records: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    mismatches: list[Mismatch] = field(default_factory=list)


def describe_copy(place: Path, root: Path) -> Copy:
    """What the folder at `place`, or around it, says; the project in `root` may know more of its run.

    Raises ArtifactError for a lineage.json that is none.
    """
    folder, copy = place if place.is_dir() else place.parent, Copy()
    if (folder / LINEAGE).exists():
        _read_lineage(folder, copy)
    elif (folder / CARD).exists() and (card := read_card(folder / CARD)):
        copy.records, copy.key = {"card": card}, card.get("run")
        copy.notes.append("whether these weights are those that its card tells of is not known")
    else:
        copy.notes.append(f"it has neither {LINEAGE} nor a card of lmcore's: nothing leads further back")
    copy.notes.append(f"no {LOCK} near it records this folder: traced as far as its own files say")
    here = root / MODEL / LINEAGE
    is_traced = (root / LOCK).exists() and here.is_file()
    if copy.key and is_traced and read_key(here) == copy.key:
        copy.notes.append(f"{MODEL} of this project is of the same run: lmcore trace {MODEL} goes on from there")
    elif copy.key and (root / "runs" / copy.key).is_dir():
        copy.notes.append(f"this project has its run: lmcore trace {copy.key} goes on from there")
    return copy


def _read_lineage(folder: Path, copy: Copy) -> None:
    lineage = read_json(folder / LINEAGE, REMEDY)
    if not is_lineage(lineage):
        raise ArtifactError(f"{folder / LINEAGE} does not say what made a model: {REMEDY}")
    copy.key = str(lineage["run_key"])
    copy.records = {"model": {name: value for name, value in lineage.items() if name != "init_from"}}
    copy.records["origins"] = list_origins(lineage)
    if (computed := compute_key(lineage)) != copy.key:
        text = f"{LINEAGE} names run {copy.key}, and its own parameters and text make {computed}"
        copy.mismatches.append(Mismatch("lineage", text, REMEDY, path=LINEAGE))
    tokenizer = folder / TOKENIZER_FILE
    if tokenizer.exists() and (found := sha256_file(tokenizer)) != lineage["tokenizer"]:
        text = f"{TOKENIZER_FILE} is {found[:12]}, the model was trained with {lineage['tokenizer'][:12]}"
        copy.mismatches.append(Mismatch("tokenizer", text, REMEDY, path=TOKENIZER_FILE))
