"""What git knows of a project's states: names of experiments and commits, files at a commit, who recorded what.

Without a repository nothing is found.
"""

import hashlib
import io
import re
import tarfile
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

from lmcore.experiments.experiments import list_references
from lmcore.experiments.queue import read_git, run_git
from lmcore.lineage.dvc_files import Project, hash_folder, hash_part
from lmcore.lineage.lock import CODE_FOLDERS, LOCK, PARAMS, PIPELINE, LockedStage, Pipeline, parse_pipeline


@dataclass(frozen=True)
class Commit:
    """A commit; `name` is what it was asked for by, `experiment` that of DVC whose commit it is."""

    id: str
    date: str  # of the author, as 2026-11-27
    subject: str
    name: str = ""
    experiment: str | None = None


def find_commit(root: Path, name: str) -> Commit | None:
    """The DVC experiment or the commit of this name; of several experiments, one made from the current commit."""
    homes = [(home, reference) for known, home, reference in list_references(root) if known == name]
    if not homes:
        return _describe(root, name, name, None)
    head = run_git(root, "rev-parse", "HEAD")
    _, reference = min(homes, key=lambda home: home[0] != head)
    return _describe(root, reference, name, name)


def list_experiments(root: Path) -> list[Commit]:
    """All that DVC has."""
    found = (_describe(root, reference, name, name) for name, _, reference in list_references(root))
    return [commit for commit in found if commit is not None]


def list_commits(root: Path, since: str = "HEAD") -> list[Commit]:
    """Those that changed dvc.lock, the newest first."""
    return [Commit(*fields, fields[0][:9]) for fields in _read_log(root, since, "--", f"./{LOCK}")]


@cache
def read_committed(root: Path, commit: Commit) -> Pipeline:
    """The pipeline of a commit. Raises as `parse_pipeline`."""
    files = {name: _read_file(root, commit.id, name) for name in (LOCK, PIPELINE, PARAMS)}
    return parse_pipeline({name: content for name, content in files.items() if content is not None}, commit.name)


def find_recording(root: Path, stage: str, since: Commit | None) -> Commit | None:
    """The commit that first recorded what dvc.lock says of a stage now, or in `since`; None if none has yet."""
    wanted = cut_stage(_read_file(root, since.id, LOCK) if since else (root / LOCK).read_bytes(), stage)
    commits = list_commits(root, since.id if since else "HEAD")
    alike = takewhile(lambda commit: cut_stage(_read_file(root, commit.id, LOCK), stage) == wanted, commits)
    return next(reversed([*alike]), None)


def find_missing_code(project: Project, stage: LockedStage, commit: Commit) -> list[str]:
    """What of the code and parameters that a stage ran with is not in the commit, as it was then."""
    files = _hash_code(project, commit.id)
    nothing = hash_folder({})  # of a folder that git has not; that of an empty one
    missing = [entry.path for entry in stage.code if (hash_part(files, entry.path) or nothing) != entry.md5]
    if read_committed(project.root, commit).find_changed_params(stage):
        missing.append(PARAMS)
    return missing


def hash_committed(root: Path, path: str) -> str | None:
    """The MD5 of a file in the current commit; None if it has none there."""
    content = read_git(root, "cat-file", "blob", f"HEAD:./{path}")
    return None if content is None else hashlib.md5(content, usedforsecurity=False).hexdigest()


def _describe(root: Path, revision: str, name: str, experiment: str | None) -> Commit | None:
    log = _read_log(root, "-1", "--end-of-options", f"{revision}^{{commit}}", "--")
    return Commit(*log[0], name, experiment) if log else None


def _read_log(root: Path, *arguments: str) -> list[tuple[str, str, str]]:
    """Hash, date and subject of commits."""
    log = run_git(root, "log", "--format=%H%x00%as%x00%s", *arguments)
    return re.findall("^(.*)\0(.*)\0(.*)$", log, re.MULTILINE)


@cache
def _read_file(root: Path, commit: str, path: str) -> bytes | None:
    return read_git(root, "cat-file", "blob", f"{commit}:./{path}")


@cache
def _hash_code(project: Project, commit: str) -> dict[str, str]:
    """The MD5s of the code in a commit, by path, of the files that DVC counts."""
    present = run_git(project.root, "ls-tree", "--name-only", commit).splitlines()
    folders = [name for name in CODE_FOLDERS if name in present]
    archive = read_git(project.root, "archive", "--format=tar", commit, "--", *folders) if folders else None
    if archive is None:
        return {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        return {
            member.name: hashlib.md5(content.read(), usedforsecurity=False).hexdigest()
            for member in files
            if not project.ignores(member.name) and (content := files.extractfile(member)) is not None
        }


def cut_stage(lock: bytes | None, stage: str) -> bytes | None:
    """The lines of dvc.lock on one stage, as DVC writes them: parsing every version of it would take a minute."""
    match = re.search(rb"^  %s:\n((?:    .*\n?|\n)*)" % re.escape(stage.encode()), lock or b"", re.M)
    return match[1] if match else None
