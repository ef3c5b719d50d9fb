"""What git knows of a project's states: names of experiments and commits, files at a commit, who recorded what."""

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lmcore.experiments.experiments import list_references
from lmcore.experiments.queue import read_git, run_git
from lmcore.lineage.dvc_files import Project, hash_folder, hash_part
from lmcore.lineage.lock import CODE_FOLDERS, LOCK, PARAMS, PIPELINE, LockedStage, Pipeline, parse_pipeline

FORMAT = "--format=%H%x00%as%x00%s"  # of git log: the fields of a commit


@dataclass(frozen=True)
class Commit:
    """A commit; `name` is what it was asked for by, `experiment` that of DVC whose commit it is."""

    id: str
    date: str  # of the author, as 2026-11-27
    subject: str
    name: str = ""
    experiment: str | None = None


class History:
    """The git repository that `root` lies in; without one nothing is found."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read = cache(self._read_file)
        self._hash_code = cache(self._hash_committed_code)
        self.read_pipeline = cache(self._read_pipeline)

    def find_commit(self, name: str) -> Commit | None:
        """The DVC experiment or the commit of this name; of several experiments, one made from the current commit."""
        homes = [(home, reference) for known, home, reference in list_references(self.root) if known == name]
        if not homes:
            return self._describe(name, name, None)
        head = run_git(self.root, "rev-parse", "HEAD")
        _, reference = min(homes, key=lambda home: home[0] != head)
        return self._describe(reference, name, name)

    def list_experiments(self) -> Iterator[Commit]:
        """All that DVC has."""
        for name, _, reference in list_references(self.root):
            commit = self._describe(reference, name, name)
            assert commit is not None
            yield commit

    def list_commits(self, since: str = "HEAD") -> Iterator[Commit]:
        """Those that changed dvc.lock, the newest first."""
        for line in filter(None, run_git(self.root, "log", FORMAT, since, "--", f"./{LOCK}").split("\n")):
            identity, date, subject = line.split("\0")
            yield Commit(identity, date, subject, identity[:9])

    def _read_pipeline(self, commit: Commit) -> Pipeline:
        """The pipeline of a commit. Raises as `parse_pipeline`."""
        files = {name: self._read(commit.id, name) for name in (LOCK, PIPELINE, PARAMS)}
        return parse_pipeline({name: content for name, content in files.items() if content is not None}, commit.name)

    def find_recording(self, stage: str, since: Commit | None) -> Commit | None:
        """The commit that first recorded what dvc.lock says of a stage now, or in `since`; None if none has yet."""
        if since is None:
            path = self.root / LOCK
            lock = path.read_bytes() if path.exists() else None
        else:
            lock = self._read(since.id, LOCK)
        wanted = cut_stage(lock, stage)
        found = None
        for commit in self.list_commits(since.id if since else "HEAD"):
            if cut_stage(self._read(commit.id, LOCK), stage) != wanted:
                break
            found = commit
        return found

    def find_missing_code(self, stage: LockedStage, commit: Commit, project: Project) -> list[str]:
        """What of the code and parameters that a stage ran with is not in the commit, as it was then."""
        files = self._hash_code(commit.id, project)
        nothing = hash_folder({})  # of a folder that git has not; that of an empty one
        missing = [entry.path for entry in stage.code if (hash_part(files, entry.path) or nothing) != entry.md5]
        if self.read_pipeline(commit).find_changed_params(stage):
            missing.append(PARAMS)
        return missing

    def hash_file(self, commit: Commit, path: str) -> str | None:
        """The MD5 of a file in a commit; None if it has none there."""
        content = self._read(commit.id, path)
        return None if content is None else hashlib.md5(content, usedforsecurity=False).hexdigest()

    @property
    def exists(self) -> bool:
        """Whether there is a repository with a commit."""
        return bool(run_git(self.root, "rev-parse", "--verify", "--quiet", "HEAD"))

    def _describe(self, revision: str, name: str, experiment: str | None) -> Commit | None:
        line = run_git(self.root, "log", "-1", FORMAT, "--end-of-options", f"{revision}^{{commit}}", "--")
        if not line:
            return None
        identity, date, subject = line.split("\0")
        return Commit(identity, date, subject, name, experiment)

    def _read_file(self, commit: str, path: str) -> bytes | None:
        return read_git(self.root, "cat-file", "blob", f"{commit}:./{path}")

    def _hash_committed_code(self, commit: str, project: Project) -> dict[str, str]:
        """The MD5s of the code in a commit, by path, of the files that DVC counts."""
        present = run_git(self.root, "ls-tree", "--name-only", commit).splitlines()
        folders = [name for name in CODE_FOLDERS if name in present]
        if not folders:
            return {}
        archive = read_git(self.root, "archive", "--format=tar", commit, "--", *folders)
        assert archive is not None
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
