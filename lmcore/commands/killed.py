"""What killed `dvc exp run` and queue workers, or a reboot, have left behind, and the commands that mend it."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from lmcore.errors import ArtifactError
from lmcore.experiments.queue import (
    EXPERIMENTS,
    Task,
    count_workers,
    is_lost,
    read_command,
    read_noted,
    read_queue,
    run_git,
)
from lmcore.runtime.progress import show_bytes

# DVC keeps the commits of an experiment in the workspace under these, and removes them at its end.
RUN_REFS = ("refs/exps/exec/EXEC_MERGE", "refs/exps/exec/EXEC_BASELINE", "refs/exps/stash")
DELETE_REFS = "git for-each-ref --format='delete %(refname)' refs/exps/exec refs/exps/stash | git update-ref --stdin"


@dataclass(frozen=True)
class Finding:
    """A fact; with a `remedy`, a command, one that is worth a thought, or without whose remedy nothing works."""

    text: str
    remedy: str | None = None
    needs_user: bool = False

    def __str__(self) -> str:
        label = "MEND" if self.needs_user else "note" if self.remedy else "ok"
        return f"{label:4}  {self.text}" + (f"  =>  {self.remedy}" if self.remedy else "")


def check_experiments(root: Path) -> Iterator[Finding]:
    """Yield what is wrong with the experiments of the project in `root`; nothing where git does not read it."""
    command = ["git", "rev-parse", "--git-dir"]
    if not shutil.which("git") or subprocess.run(command, cwd=root, capture_output=True, check=False).returncode:
        return
    if run_git(root, "rev-parse", "--is-shallow-repository") == "true":
        text = "git: a shallow clone, where `dvc exp run --temp` and the queue run experiments and record none"
        yield Finding(text, "git fetch --unshallow")
    if not (root / EXPERIMENTS).exists():
        return
    yield from _examine_queue(root)
    if not find_experiments_at_work(root):
        yield from _find_copies(root)


def find_killed_run(root: Path, changed: int) -> Finding | None:
    """What a `dvc exp run` in the workspace that was killed has left there; None if none has left anything.

    `changed` counts the files that differ from the commit.
    """
    # git's newest stash is what a killed DVC put aside if its lock still says that it was at the workspace.
    held = (read_noted(root / EXPERIMENTS / "rwlock") or {}).get("write", {}).get("workspace")
    newest = run_git(root, "log", "-g", "-1", "--format=%gs", "refs/stash", "--")
    stashed = held is not None and read_command(held["pid"]) is None and newest.startswith("WIP on ")
    on_branch = run_git(root, "symbolic-ref", "--quiet", "HEAD")
    left = any(run_git(root, "rev-parse", "--verify", "--quiet", name) for name in RUN_REFS)
    if (not stashed and (on_branch or not left)) or find_experiments_at_work(root):
        return None
    text, commands = "git: a `dvc exp run` was killed", []
    if not on_branch:
        moved = re.match(r"checkout: moving from (\S+) to", run_git(root, "log", "-g", "-1", "--format=%gs", "HEAD"))
        still = moved and run_git(root, "rev-parse", "--verify", "--quiet", f"refs/heads/{moved[1]}")
        commands += [f"git switch {moved[1] if moved and still else '--create NAME'}", DELETE_REFS]
        text += ", and HEAD is on no branch" + ("" if stashed else "; params.yaml has its values")
    if stashed:
        if changed:  # a copy of the user's changes, and what DVC or the user has changed since: nothing gets lost
            commands.insert(0, "git stash push --message 'after the kill'")
        commands.append(f"git stash pop --index stash@{{{int(changed > 0)}}}")
        text += ", and your changes are in git's stash"
    return Finding(text, " && ".join(commands) + ", then the same dvc exp run, which goes on", needs_user=True)


def explain_no_branch(root: Path, commit: str) -> Finding:
    """Why HEAD is on no branch, where no run was killed: one is at work, or the user wants it so."""
    for process, command in find_experiments_at_work(root):
        if "run" in command and not {"--temp", "--queue"} & set(command):
            return Finding(f"git: at {commit} on no branch while `dvc exp run` is at work as process {process.pid}")
    return Finding(f"git: at {commit} on no branch, where new commits get lost", "git switch --create NAME")


def find_experiments_at_work(root: Path) -> list[tuple[psutil.Process, list[str]]]:
    """The processes of DVC that run experiments of this project, in its folder or in a copy, and their commands."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command, place = process.info["cmdline"] or [], process.info["cwd"]  # None: it is somebody else's
        is_dvc = "exp" in command and any(Path(word).name == "dvc" for word in command)
        if is_dvc and place and Path(place).is_relative_to(root.resolve()):
            found.append((process, command))
    return found


def _examine_queue(root: Path) -> Iterator[Finding]:
    """Experiments of the queue that failed, that nobody records, and that wait for a worker that is not there."""
    try:
        tasks = read_queue(root)
    except ArtifactError as error:
        yield Finding(f"queue: {error}", "dvc queue status", needs_user=True)
        return
    workers = count_workers(root)
    running = [task for task in tasks if task.status == "Running"]
    lost = [task for task in running if is_lost(root, task.number, workers > 0)]
    if lost:
        numbers = " ".join(task.number for task in lost)
        text = f"queue: DVC takes {_list_names(lost)} for running, and nothing runs any more: a kill or a reboot"
        remedy = f"dvc queue kill {numbers} && dvc queue remove {numbers}, then queue them again, and they go on"
        yield Finding(text, remedy, needs_user=True)
    orphans = [task for task in running if task not in lost]
    if orphans and not workers:
        numbers = " ".join(task.number for task in orphans)
        text = f"queue: the workers were killed, and what {_list_names(orphans)} finds will not be recorded"
        remedy = f"dvc queue kill {numbers}, which saves and leaves, then lmcore doctor again"
        yield Finding(text, remedy, needs_user=True)
    if failed := [task for task in tasks if task.status == "Failed"]:
        text = f"queue: {_list_names(failed)} failed"
        yield Finding(text, f"dvc queue logs {failed[0].number} says why; dvc queue remove --failed forgets them")
    if (waiting := [task for task in tasks if task.status == "Queued"]) and not workers:
        yield Finding(f"queue: {_list_names(waiting)} waits, and no worker is at work", "dvc queue start")


def _find_copies(root: Path) -> Iterator[Finding]:
    """Copies of the project that killed experiments worked in; what they share with DVC's cache takes no room."""
    patterns = (EXPERIMENTS / "tmp*", EXPERIMENTS / "standalone" / "tmp*")
    found = {pattern: [path for path in root.glob(str(pattern)) if path.is_dir()] for pattern in patterns}
    copies = [copy for copies in found.values() for copy in copies]
    if not copies:
        return
    states = [path.lstat() for copy in copies for path in copy.rglob("*")]
    size = show_bytes(sum(state.st_size for state in states if state.st_nlink == 1))
    text = f"{len(copies)} temporary folders of experiments that were killed, {size}; no experiment is running"
    yield Finding(text, f"rm -rf {' '.join(str(pattern) for pattern in patterns if found[pattern])}")


def _list_names(tasks: list[Task]) -> str:
    return ", ".join(task.name for task in tasks)
