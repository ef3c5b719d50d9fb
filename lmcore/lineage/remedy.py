"""What no longer matches, and the command that mends it: from a sound copy, or else by making it again."""

import shlex
from dataclasses import dataclass

from lmcore.lineage.dvc_files import Project
from lmcore.lineage.history import hash_committed
from lmcore.lineage.lock import Entry, Pipeline


@dataclass(frozen=True)
class Mismatch:
    """One thing that is not as it was recorded, in words, and the command that mends it.

    `kind` is a word of docs/lineage.md's table; `stage` and `path` say where, if it has a place.
    """

    kind: str
    text: str
    remedy: str
    stage: str | None = None
    path: str | None = None

    def __str__(self) -> str:
        return f"MEND  {self.text}  =>  {self.remedy}"


def make_again(stage: str) -> str:
    """The command that runs one stage whatever DVC thinks of it, and then what depends on it."""
    return f"dvc repro --force --single-item {stage}, then dvc repro"


def restore(project: Project, pipeline: Pipeline, stage: str, entry: Entry) -> str:
    """The command that brings back an output as it was recorded, from where there is a sound copy of it.

    DVC takes a file for unchanged by its times, size and inode, and never overwrites an object of its cache: what is
    damaged has to go first, in both places (a hard link is in both at once).
    """
    place = project.root / entry.path
    path = shlex.quote(entry.path)
    remove = f"rm -r {path} && " if place.exists() or place.is_symlink() else ""
    if not pipeline.is_cached(stage, entry.path):
        kept = hash_committed(project.root, entry.path) == entry.md5
        return f"git checkout HEAD -- {path}" if kept else f"{remove}dvc repro {stage}"
    # Where the list of a folder's files is lacking or damaged, it alone is known.
    objects = dict.fromkeys([entry.md5, *(project.list_recorded(entry) or {}).values()])
    places, damaged = project.find_damaged(objects)
    if len(places) == len(objects) and not damaged:
        return f"{remove}dvc checkout {path}"
    if damaged:
        remove = f"rm -r -f {' '.join([path, *(show_object(project, md5) for md5 in damaged)])} && "
    return f"{remove}dvc pull {path}" if project.has_remote else f"{remove}dvc repro {stage}"


def show_object(project: Project, md5: str) -> str:
    """An object of DVC's cache as a command names it."""
    place = project.cached(md5)
    assert place is not None
    shown = place.relative_to(project.root) if place.is_relative_to(project.root) else place
    return shlex.quote(str(shown))
