"""What killed `dvc exp run` and queue workers, or a reboot, have left behind, and the commands that mend it."""

import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from lmcore.dvc_queue import EXPERIMENTS, Task, count_workers, is_lost, read_queue, run_git
from lmcore.findings import Finding
from lmcore.forecast import show_bytes

# DVC keeps the commits of an experiment in the workspace under these, and removes them at its end.
RUN_REFS = ("refs/exps/exec/EXEC_MERGE", "refs/exps/exec/EXEC_BASELINE", "refs/exps/stash")
DELETE_REFS = "git for-each-ref --format='delete %(refname)' refs/exps/exec refs/exps/stash | git update-ref --stdin"
STASH_SECONDS = 60  # DVC puts changed files into git's stash, then leaves the branch: no later than this


def examine_experiments(root: Path) -> Iterator[Finding]:
    """What is wrong with the experiments of the project in `root`, once an experiment has run there."""
    if run_git(root, "rev-parse", "--is-shallow-repository") == "true":
        text = "git: a shallow clone, where `dvc exp run --temp` and the queue run experiments and record none"
        yield Finding(text, "git fetch --unshallow")
    if not (root / EXPERIMENTS).exists():
        return
    at_work = find_experiments_at_work(root)
    if not at_work:
        yield from _find_stash(root)
    yield from _examine_queue(root)
    if not at_work:
        yield from _find_copies(root)


def explain_no_branch(root: Path, commit: str, changed: int) -> Finding:
    """Why HEAD is on no branch: an experiment runs in the workspace, one was killed there, or the user wants it so.

    `changed` counts the files that differ from the commit.
    """
    at_work = [process.pid for process, command in find_experiments_at_work(root) if _is_in_workspace(command)]
    if at_work:
        return Finding(f"git: at {commit} on no branch while `dvc exp run` is at work as process {at_work[0]}")
    stash = _dvc_stash(root)
    if not stash and not any(run_git(root, "rev-parse", "--verify", "--quiet", name) for name in RUN_REFS):
        return Finding(f"git: at {commit} on no branch, where new commits get lost", "git switch --create NAME")
    branch = _branch_before(root)
    commands = [f"git switch {branch or '--create NAME'}", DELETE_REFS]
    text = f"git: a `dvc exp run` was killed: HEAD is on no branch{', and params.yaml has its values' * (not stash)}"
    if stash:
        text += ", and your changes are in git's stash"
        if changed:  # a copy of them, and what DVC or the user has changed since: nothing gets lost
            commands.insert(0, "git stash push --message 'after the kill'")
        commands.append(f"git stash pop --index stash@{{{int(changed > 0)}}}")
    return Finding(text, " && ".join(commands) + ", then the same dvc exp run, which goes on", needs_user=True)


def _branch_before(root: Path) -> str | None:
    """The branch that HEAD was on before it was detached, if it still exists."""
    moved = re.match(r"checkout: moving from (\S+) to", run_git(root, "log", "-g", "-1", "--format=%gs", "HEAD"))
    if moved and run_git(root, "rev-parse", "--verify", "--quiet", f"refs/heads/{moved[1]}"):
        return moved[1]
    return None


def _dvc_stash(root: Path) -> bool:
    """Whether git's stash has what DVC put there just before it left the branch."""
    stashed = run_git(root, "log", "-g", "-1", "--format=%ct", "refs/stash", "--")
    left = run_git(root, "log", "-g", "-1", "--date=unix", "--format=%gd", "HEAD")
    when = re.search(r"@\{(\d+)\}", left)
    return bool(stashed and when) and 0 <= int(when[1]) - int(stashed) <= STASH_SECONDS if when else False


def _find_stash(root: Path) -> Iterator[Finding]:
    """Changes to the current commit in git's stash, while HEAD is on a branch: perhaps DVC put them there."""
    on_branch = run_git(root, "symbolic-ref", "--quiet", "HEAD")
    described = run_git(root, "log", "-g", "-1", "--format=%gs", "refs/stash", "--")
    base = run_git(root, "rev-parse", "--verify", "--quiet", "refs/stash^")
    if on_branch and described.startswith("WIP on ") and base == run_git(root, "rev-parse", "HEAD"):
        text = "git: the stash has changes to this commit, put there by you or by a `dvc exp run` that was killed"
        yield Finding(text, "git stash show -p, then git stash pop or git stash drop")


def find_experiments_at_work(root: Path) -> list[tuple[psutil.Process, list[str]]]:
    """The processes of DVC that run experiments of this project, in its folder or in a copy, and their commands."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if "exp" not in command or not any(Path(word).name == "dvc" for word in command):
                continue
            if Path(process.cwd()).is_relative_to(root.resolve()):
                found.append((process, command))
        except psutil.Error:  # it has ended meanwhile, or is somebody else's
            continue
    return found


def _is_in_workspace(command: list[str]) -> bool:
    return "run" in command and not {"--temp", "--queue"} & set(command)


def _examine_queue(root: Path) -> Iterator[Finding]:
    """Experiments of the queue that failed, that nobody records, and that wait for a worker that is not there."""
    tasks = read_queue(root)
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
    if not any(found.values()):
        return
    copies = [copy for copies in found.values() for copy in copies]
    states = [path.lstat() for copy in copies for path in copy.rglob("*")]
    size = sum(state.st_size for state in states if state.st_nlink == 1)
    text = (
        f"{len(copies)} temporary folders of experiments that were killed, {show_bytes(size)}; no experiment is running"
    )
    yield Finding(text, f"rm -rf {' '.join(str(pattern) for pattern in patterns if found[pattern])}")


def _list_names(tasks: list[Task]) -> str:
    return ", ".join(task.name for task in tasks)
