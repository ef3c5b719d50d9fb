"""The experiments that DVC keeps in git, and the workspace and commits as if they were such."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lmcore.errors import ArtifactError
from lmcore.experiments.queue import run_git
from lmcore.params import flatten

WORKSPACE = "workspace"
REFERENCE = re.compile("refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)")  # its commit in two parts, its name


@dataclass(frozen=True)
class StoredExperiment:
    """What DVC knows of an experiment; parameters as `train.seed`, metrics as `FILE.NAME`, the file without its ending.

    `code` is the commit that it was made from, or `workspace`; `is_of_head` says whether that is the current one.
    """

    name: str
    code: str
    status: str
    is_of_head: bool
    params: Mapping[str, Any] = field(repr=False)
    metrics: Mapping[str, Any] = field(repr=False)


def read_experiments(names: Sequence[str], root: Path) -> list[StoredExperiment]:
    """The current commit's experiments, the oldest first, then the workspace, and what `names` ask for beside them.

    Of these, experiments of other commits are taken along with all of their commit; a commit goes by the name that it
    was asked by; names that neither are, are left out. Raises ArtifactError where DVC cannot read the project.
    """
    head = run_git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    if not head:
        raise ArtifactError(f"{root} has no git commit, and DVC keeps experiments in git: commit the project first")
    references = [
        match
        for line in run_git(root, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
        if (match := REFERENCE.fullmatch(line))
    ]
    home = {match[3]: match[1] + match[2] for match in references}
    commits = {
        name: commit
        for name in names
        if name not in home
        and name != WORKSPACE
        and (commit := run_git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"))
    }
    wanted = dict.fromkeys([head, *commits.values(), *(home[name] for name in names if name in home)])
    states = {state["rev"]: state for state in _show(list(wanted), root)}
    found = [
        _describe(entry["revs"][0], entry["name"], commit, (entry["executor"] or {}).get("state"), commit == head)
        for commit in wanted
        for entry in reversed(states[commit]["experiments"] or [])
    ]
    found.append(_describe(states[WORKSPACE], WORKSPACE, WORKSPACE, None, False))
    return found + [_describe(states[commit], name, commit, None, False) for name, commit in commits.items()]


def read_file(name: str, code: str, path: str, root: Path) -> str:
    """A file that git keeps, as the experiment or the commit of this name left it; of `workspace`, as it is now.

    `code` is the commit that the experiment was made from. Raises ArtifactError where there is none.
    """
    if name == WORKSPACE and (root / path).exists():
        return (root / path).read_text(encoding="utf-8")
    for revision in (f"refs/exps/{code[:2]}/{code[2:]}/{name}", name):
        if text := run_git(root, "show", f"{revision}:./{path}"):
            return text
    raise ArtifactError(f"{name}: git has no {path} of it; an experiment of DVC has one once its training has ended")


def _show(commits: Sequence[str], root: Path) -> list[dict[str, Any]]:
    """`dvc exp show`, whose JSON is what DVC promises to other programs."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", *(f"--rev={commit}" for commit in commits)]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if result.returncode:
        complaint = next((line for line in result.stderr.splitlines() if line.startswith("ERROR")), result.stderr)
        raise ArtifactError(f"DVC cannot show the experiments of {root} ({complaint.strip()})")
    states: list[dict[str, Any]] = json.loads(result.stdout)
    return states


def _describe(
    state: Mapping[str, Any], name: str | None, code: str, status: str | None, is_of_head: bool
) -> StoredExperiment:
    data = state["data"] or {}
    if status is None:
        status = "success" if state["error"] is None else "failed"
    params = {key: value for _, values in _read_files(data, "params") for key, value in flatten(values).items()}
    metrics = flatten({PurePosixPath(path).stem: values for path, values in _read_files(data, "metrics")})
    return StoredExperiment(name or state["rev"][:7], code, status, is_of_head, params, metrics)


def _read_files(data: Mapping[str, Any], kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parameter or metrics files that could be read, by their paths."""
    for path, content in (data.get(kind) or {}).items():
        if isinstance(content.get("data"), dict):
            yield path, content["data"]
