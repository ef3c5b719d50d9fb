"""What no longer matches, and the command that mends it: from a sound copy, or else by making it again."""

import shlex
from dataclasses import dataclass

from lmcore.lineage.dvc_files import Project
from lmcore.lineage.history import History
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


def find_bad_objects(project: Project, entry: Entry) -> tuple[list[str], list[str]]:
    """The objects of an output that DVC's cache lacks, and those that are not what their names say, both by MD5.

    Where the list of a folder's files is lacking or damaged, it alone is known.
    """
    objects = [entry.md5] if entry.is_folder else []
    recorded = project.list_recorded(entry)
    if recorded is None:
        place = project.cached(entry.md5)
        return ([], objects) if place is not None and place.is_file() else (objects, [])
    objects += dict.fromkeys(recorded.values())
    places = {md5: place for md5 in objects if (place := project.cached(md5)) is not None and place.is_file()}
    contents = project.read_all(places.values(), "read DVC's cache")
    damaged = [md5 for md5, place in places.items() if contents[place].md5 != md5.removesuffix(".dir")]
    return [md5 for md5 in objects if md5 not in places], damaged


def restore(project: Project, history: History, pipeline: Pipeline, stage: str, entry: Entry) -> str:
    """The command that brings back an output as it was recorded, from where there is a sound copy of it.

    DVC takes a file for unchanged by its times, size and inode, and never overwrites an object of its cache: what is
    damaged has to go first, in both places (a hard link is in both at once).
    """
    place = project.root / entry.path
    path = shlex.quote(entry.path)
    remove = f"rm -r {path} && " if place.exists() or place.is_symlink() else ""
    if not pipeline.is_cached(stage, entry.path):
        head = history.find_commit("HEAD")
        kept = head is not None and history.hash_file(head, entry.path) == entry.md5
        return f"git checkout HEAD -- {path}" if kept else f"{remove}dvc repro {stage}"
    bad = find_bad_objects(project, entry)
    if bad == ([], []):
        return f"{remove}dvc checkout {path}"
    damaged = "".join(f" {show_object(project, md5)}" for md5 in bad[1])
    if damaged:
        remove = f"rm -r -f {path}{damaged} && "
    if project.has_remote:
        return f"{remove}dvc pull {path}"
    return f"{remove}dvc repro {stage}"


def show_object(project: Project, md5: str) -> str:
    """An object of DVC's cache as a command names it."""
    place = project.cached(md5)
    assert place is not None
    shown = place.relative_to(project.root) if place.is_relative_to(project.root) else place
    return shlex.quote(str(shown))
