"""Models that lie outside the pipeline, as a folder that was sent: what their own files say of where they come from."""

from pathlib import Path

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
from lmcore.lineage.steps import Trace

REMEDY = "copy the folder anew"


def describe_copy(found: Trace, place: Path, root: Path) -> None:
    """Enter in `found` what the folder at `place`, or around it, says; the project in `root` may know its run.

    Raises ArtifactError for a lineage.json that is none.
    """
    folder = place if place.is_dir() else place.parent
    found.subject["path"] = str(place)
    key: str | None = None
    if (folder / LINEAGE).exists():
        key = _read_lineage(found, folder)
    elif (folder / CARD).exists() and (card := read_card(folder / CARD)):
        found.records, key = {"card": card}, card.get("run")
        found.notes.append("whether these weights are those that its card tells of is not known")
    else:
        found.notes.append(f"it has neither {LINEAGE} nor a card of lmcore's: nothing leads further back")
    found.notes.append(f"no {LOCK} near it records this folder: traced as far as its own files say")
    if not key:
        return
    found.run = {"key": key, "path": None}
    here = root / MODEL / LINEAGE
    if (root / LOCK).exists() and here.is_file() and read_key(here) == key:
        found.notes.append(f"{MODEL} of this project is of the same run: lmcore trace {MODEL} goes on from there")
    elif (root / "runs" / key).is_dir():
        found.notes.append(f"this project has its run: lmcore trace {key} goes on from there")


def _read_lineage(found: Trace, folder: Path) -> str:
    """Enter what a lineage.json says, and where it contradicts itself or its tokenizer; return the key of the run."""
    lineage = read_json(folder / LINEAGE, REMEDY)
    if not is_lineage(lineage):
        raise ArtifactError(f"{folder / LINEAGE} does not say what made a model: {REMEDY}")
    key = str(lineage["run_key"])
    model = {name: value for name, value in lineage.items() if name != "init_from"}
    found.records = {"model": model, "origins": list_origins(lineage)}
    if (computed := compute_key(lineage)) != key:
        text = f"{LINEAGE} names run {key}, what it describes is {computed}"
        found.mismatches.append(Mismatch("lineage", text, REMEDY, path=LINEAGE))
    tokenizer = folder / TOKENIZER_FILE
    if tokenizer.exists() and (made_by := sha256_file(tokenizer)) != lineage["tokenizer"]:
        text = f"{TOKENIZER_FILE} is {made_by[:12]}, the model was trained with {lineage['tokenizer'][:12]}"
        found.mismatches.append(Mismatch("tokenizer", text, REMEDY, path=TOKENIZER_FILE))
    return key
