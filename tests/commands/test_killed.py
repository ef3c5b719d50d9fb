"""Experiments that are really killed: what the doctor finds, and that the command it names mends it."""

import json
import os
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from projects import Project, find_stopped_child, finished_once, kill_tree, wait_for

from lmcore.commands.doctor import check_git
from lmcore.commands.killed import Finding, check_experiments

pytestmark = finished_once

STEPS = ("-S", "train.max_steps=200", "-S", "train.checkpoint_every_steps=50")
RUN = ("dvc", "exp", "run", *STEPS, "train")


def found(project: Project) -> list[Finding]:
    """What is worth a thought or needs the user, of git and of experiments."""
    findings = [*check_git(project.folder), *check_experiments(project.folder)]
    return [finding for finding in findings if finding.remedy]


def mend(project: Project, finding: Finding) -> None:
    """Do what the remedy says, in its order; `, then` what follows is said to a person."""
    assert finding.remedy is not None
    project.run("bash", "-o", "pipefail", "-c", finding.remedy.partition(", ")[0])


def stop_at(step: int) -> str:
    """Sabotage of a training: it stands still when its checkpoint of this step is all but whole."""
    return f"stages.train STOP os.rename step-{step:08d}.json 1"


def start_and_kill(project: Project, *command: str, step: int) -> None:
    """Run the command and kill it and all below it when its training stands still."""
    process = project.start(*command, sabotage=stop_at(step))
    wait_for(lambda: find_stopped_child(process, "stages.train"))
    told = [*check_git(project.folder), *check_experiments(project.folder)]
    assert not any(finding.needs_user for finding in told), "nothing is wrong as long as it is at work"
    assert not any("temporary folders" in finding.text for finding in told)
    if "--temp" not in command:
        assert any(finding.text.endswith(f"at work as process {process.pid}") for finding in told)
    kill_tree(process.pid)
    process.communicate()


@pytest.mark.slow
def test_killed_in_the_workspace_and_killed_in_a_copy_it_goes_on(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "killed")
    start_and_kill(project, *RUN, step=100)
    [finding] = found(project)
    assert finding.needs_user
    assert finding.text.startswith("git: a `dvc exp run` was killed, and HEAD is on no branch; params.yaml has its")
    mend(project, finding)
    assert project.run("git", "branch", "--show-current").strip() == "main"
    [changes] = found(project)
    assert changes.text.startswith("git: 4 files differ from commit")  # params.yaml, and what the training writes

    start_and_kill(project, *RUN, "--temp", step=150)
    changes, copies = found(project)
    assert not changes.needs_user
    assert re.match(r"1 temporary folders of experiments that were killed, [\d.]+ MB; no experiment", copies.text)
    assert copies.remedy == "rm -rf .dvc/tmp/exps/standalone/tmp*"
    mend(project, copies)
    assert found(project) == [changes]

    assert "going on from step 1" in project.run(*RUN, "--name", "mended")
    assert "mended" in project.run("dvc", "exp", "list", "--name-only")
    assert project.metrics("train")["steps"] == 200


@pytest.mark.slow
def test_a_run_killed_before_it_began_has_the_users_changes_in_the_stash(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "stashed")
    with (project.folder / "README.md").open("a") as file:
        file.write("mine\n")
    command = ("python", "-m", "dvc", "exp", "run", *STEPS)
    for turn in ("1", "2"):  # as often as it opens params.yaml to write
        process = project.start(*command, sabotage=f"dvc KILL open params.yaml {turn}")
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        [finding] = found(project)
        assert finding.needs_user
        assert finding.text.endswith("HEAD is on no branch, and your changes are in git's stash")
        assert project.status()
        mend(project, finding)
        assert project.run("git", "branch", "--show-current").strip() == "main"
        assert project.status() == " M README.md\n"
        assert (project.folder / "README.md").read_text().endswith("mine\n")
        project.run("git", "stash", "drop")  # what there was after the kill


def test_the_users_own_stash_and_no_branch_are_no_kill(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "thought")
    (project.folder / "README.md").write_text("mine")
    project.run("git", "stash")
    project.run("git", "switch", "--detach")
    [finding] = found(project)
    assert (finding.remedy, finding.needs_user) == ("git switch --create NAME", False)


@pytest.mark.slow
def test_a_queue_whose_worker_was_killed(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "queue")
    project.run("dvc", "exp", "run", "--queue", "-S", "train.max_steps=0", "--name", "wrong")
    project.run(*RUN, "--queue", "--name", "right")
    [waits] = found(project)
    assert (waits.text, waits.remedy) == ("queue: wrong, right waits, and no worker is at work", "dvc queue start")

    project.run("dvc", "queue", "start", sabotage=stop_at(100))
    noted = project.folder / ".dvc" / "tmp" / "exps" / "celery" / "dvc-exp-worker-1.json"
    wait_for(noted.exists)  # the command does not
    worker = read_process(project, "celery/dvc-exp-worker-1.json")
    trainer = wait_for(lambda: find_stopped_trainer(worker))
    [failed] = found(project)
    assert failed.text == "queue: wrong failed"
    assert failed.remedy is not None
    number = re.match(r"dvc queue logs (\w+) says why; dvc queue remove --failed forgets them", failed.remedy)
    assert number
    assert "train.max_steps=0: must be greater" in project.run("dvc", "queue", "logs", number[1])
    project.run("dvc", "queue", "remove", "--failed")
    assert not found(project)

    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: read_process(project, "celery/dvc-exp-worker-1.json") == worker and not is_alive(worker))
    told = found(project)
    assert len(told) == 1, told
    [orphaned] = told
    assert orphaned.text == "queue: the workers were killed, and what right finds will not be recorded"
    mend(project, orphaned)
    os.kill(trainer, signal.SIGCONT)
    wait_for(lambda: not is_alive(trainer))
    wait_for(lambda: any("takes right for running" in finding.text for finding in found(project)))
    lost, copies = found(project)
    assert lost.needs_user
    for finding in (lost, copies):
        mend(project, finding)
    assert not found(project)

    project.run(*RUN, "--queue", "--name", "right")
    project.run("dvc", "queue", "start")
    wait_for(lambda: "Success" in project.run("dvc", "queue", "status"))
    assert "going on from step" in project.run("dvc", "queue", "logs", "right")
    assert "right" in project.run("dvc", "exp", "list", "--name-only")
    project.run("dvc", "queue", "stop", "--kill")
    assert not found(project)


def read_process(project: Project, name: str) -> int:
    pid: int = json.loads((project.folder / ".dvc" / "tmp" / "exps" / name).read_text())["pid"]
    return pid


def is_alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def find_stopped_trainer(worker: int) -> int | None:
    for child in psutil.Process(worker).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_STOPPED:
                return child.pid
    return None


def test_a_shallow_clone_records_no_experiments(finished: Project, tmp_path: Path) -> None:
    finished.run("git", "clone", "--quiet", "--depth=1", f"file://{finished.folder}", str(tmp_path / "shallow"))
    project = Project.__new__(Project)
    project.folder = tmp_path / "shallow"
    [finding] = found(project)
    assert finding.text.startswith("git: a shallow clone, where `dvc exp run --temp` and the queue")
    mend(project, finding)
    assert not found(project)
    shutil.rmtree(project.folder)
