"""Killed anywhere, a training goes on bit for bit: real processes, killed before file operations and at any moment."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from sabotage.trials import TRAIN, Nursery, Project, make_environment, open_nursery

pytestmark = pytest.mark.xdist_group("kill")  # one process, which has one nursery

APPEND = "'a'"  # how metrics.jsonl is opened, among the operations
# Runs that are the same as TRAIN's up to the end of their trunks, steps 4 and 3.
SHORT, SHORTER = (TRAIN.model_copy(update={"max_steps": steps}) for steps in (8, 6))


@dataclass(frozen=True)
class Whole:
    """What a training does that nobody disturbs: its outcome, its file operations, and how long it took."""

    outcome: dict[str, bytes]
    operations: list[str]
    seconds: float

    @property
    def turns(self) -> range:
        """The numbers of its operations."""
        return range(1, len(self.operations) + 1)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which nobody has trained yet."""
    return Project.create(tmp_path_factory.mktemp("template") / "project")


@pytest.fixture(scope="module")
def nursery(template: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with open_nursery(template.copy(tmp_path_factory.mktemp("nursery") / "practice")) as opened:
        yield opened


@pytest.fixture(scope="module")
def whole(nursery: Nursery, template: Project, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    project = template.copy(tmp_path_factory.mktemp("whole") / "project")
    started = time.monotonic()
    training = nursery.run(project, "SHOW * * 0")
    seconds = time.monotonic() - started
    assert training.status == 0, training.output
    assert [record["step"] for record in project.read_log()] == list(range(1, 13))
    return Whole(project.read_outcome(), training.operations, seconds)


@pytest.fixture
def project(template: Project, tmp_path: Path) -> Project:
    return template.copy(tmp_path / "project")


def sample(turns: range, most: int) -> list[int]:
    """At most so many of them, always the same ones."""
    return sorted(random.Random(len(turns)).sample(turns, min(len(turns), most)))


def turns_before(text: str, operations: list[str]) -> range:
    """The numbers of the operations before the first that has `text`."""
    return range(1, next(number for number, operation in enumerate(operations, 1) if text in operation))


def kill_before_each(turns: list[int], nursery: Nursery, whole: Whole, template: Project, folder: Path) -> None:
    """Before the operation with this number: kill, start again, compare. What is complete must be so at once."""
    wrong = []
    for turn in turns:
        project = template.copy(folder / str(turn))
        killed = nursery.run(project, f"KILL * * {turn}")
        assert killed.status == -signal.SIGKILL, killed.output
        premature = project.compare(whole.outcome) if project.is_complete() else []
        again = nursery.run(project)
        if premature or again.status != 0 or project.compare(whole.outcome):
            wrong.append((killed.output, again.output, premature or again.status or project.compare(whole.outcome)))
        shutil.rmtree(project.folder)
    assert not wrong, "\n".join(f"{before}*** and again:\n{after}*** wrong: {what}" for before, after, what in wrong)


@pytest.mark.parametrize("most", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_before_any_file_operation(
    nursery: Nursery, whole: Whole, template: Project, tmp_path: Path, most: int
) -> None:
    assert len(whole.turns) > 90, "there were 104"
    kill_before_each(sample(whole.turns, most), nursery, whole, template, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_and_again(nursery: Nursery, whole: Whole, project: Project, seed: int) -> None:
    source, seconds, kills = random.Random(seed), whole.seconds, 0
    while kills < 4 and seconds > 0.001:
        training = nursery.start(project)
        if training.ends_within(source.uniform(0.0, seconds)):
            seconds *= 0.8  # too late: the machine was slower when it was timed, or there was little left to do
        else:
            training.send(signal.SIGKILL)
            kills += training.wait() == -signal.SIGKILL
    assert kills == 4
    last = nursery.run(project)
    assert last.status == 0, last.output
    assert project.compare(whole.outcome) == []


@pytest.mark.parametrize("damage", ["the newest", pytest.param("all of them", marks=pytest.mark.slow)])
def test_torn_checkpoints_are_passed_over(nursery: Nursery, whole: Whole, project: Project, damage: str) -> None:
    nursery.run(project, "KILL open metrics.jsonl 11")
    seals = project.find_seals()
    assert len(seals) >= 2, "there must be one to fall back on"
    torn = seals[-1:] if damage == "the newest" else seals
    for seal in torn:
        tensors = seal.with_suffix(".safetensors")
        os.truncate(tensors, tensors.stat().st_size // 2)
    again = nursery.run(project)
    assert again.output.count("is torn or changed") == len(torn)
    beginning = "starting" if torn == seals else f"going on from step {int(seals[-2].stem[-8:])}"
    assert f": {beginning}\n" in again.output
    assert project.compare(whole.outcome) == []


@pytest.mark.slow
def test_a_torn_line_of_the_log_is_written_again(nursery: Nursery, whole: Whole, project: Project) -> None:
    nursery.run(project, "KILL open metrics.jsonl 8")
    assert project.read_log()[-1]["step"] == 7
    with (project.find_run() / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "tok')
    again = nursery.run(project)
    assert again.status == 0, again.output
    assert project.compare(whole.outcome) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_of_three_at_once_those_who_wait_take_over(nursery: Nursery, whole: Whole, project: Project, seed: int) -> None:
    unlocked = turns_before(".lock", whole.operations)[-1] + 1  # the lock is taken once its file is open
    turn = random.Random(seed).choice(whole.turns[unlocked:])
    holder = nursery.start(project, f"STOP * * {turn}")
    holder.wait_until_stopped()
    waiting = [nursery.start(project) for _ in range(2)]
    for other in waiting:
        other.wait_until_it_says("is being trained by another process: waiting for it")
    holder.send(signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL
    assert [other.wait() for other in waiting] == [0, 0], "".join(other.output for other in waiting)
    assert project.compare(whole.outcome) == []
    assert not list(project.folder.glob("runs/*.previous")), "it was trained afresh"


@pytest.mark.slow
def test_stopped_for_a_while(nursery: Nursery, whole: Whole, template: Project, tmp_path: Path) -> None:
    for turn in sample(whole.turns, most=3):
        project = template.copy(tmp_path / str(turn))
        training = nursery.start(project, f"STOP * * {turn}")
        training.wait_until_stopped()
        assert not training.ends_within(0.3)
        training.send(signal.SIGCONT)
        assert training.wait() == 0, training.output
        assert project.compare(whole.outcome) == []


@pytest.mark.parametrize("name", ["TERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("INT", "HUP"))])
def test_a_signal_in_training_saves_and_leaves(nursery: Nursery, whole: Whole, project: Project, name: str) -> None:
    done = 0
    for most in (5, 11):
        line = random.Random(name).randint(1, most - done)
        leaving = nursery.run(project, f"{name} open metrics.jsonl {line}")
        assert leaving.status == 128 + signal.Signals[f"SIG{name}"], leaving.output
        assert "Traceback" not in leaving.output
        done += line
        assert project.read_log()[-1]["step"] == done, "it has not left at once"
        assert project.find_seals()[-1].stem == f"step-{done:08d}", "it has not saved"
    again = nursery.run(project)
    assert again.status == 0, again.output
    assert project.compare(whole.outcome) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_signal_at_any_moment(nursery: Nursery, whole: Whole, template: Project, tmp_path: Path, name: str) -> None:
    """Before and after training it is abrupt, or comes too late to matter; it is never a traceback."""
    number = signal.Signals[f"SIG{name}"]
    source = random.Random(name)
    for turn in (source.choice(turns_before(APPEND, whole.operations)), *source.sample(whole.turns, 3)):
        project = template.copy(tmp_path / f"{name}-{turn}-{source.random()}")
        leaving = nursery.run(project, f"{name} * * {turn}")
        assert leaving.status in {0, 128 + number, -number}, leaving.output
        assert "Traceback" not in leaving.output
        if leaving.status != 0:
            again = nursery.run(project)
            assert again.status == 0, again.output
        assert project.compare(whole.outcome) == []


@pytest.fixture(scope="module")
def branching(nursery: Nursery, template: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which two shorter runs are complete."""
    project = template.copy(tmp_path_factory.mktemp("branching") / "project")
    for train in (SHORTER, SHORT):
        project.write_params(train)
        training = nursery.run(project)
        assert training.status == 0, training.output
    shutil.rmtree(project.folder / "models" / "gpt")
    shutil.rmtree(project.folder / "reports")
    project.write_params(TRAIN)
    return project


@pytest.mark.slow
def test_killed_as_it_branches_off(nursery: Nursery, whole: Whole, branching: Project, tmp_path: Path) -> None:
    project = branching.copy(tmp_path / "whole")
    training = nursery.run(project, "SHOW * * 0")
    assert "which is the same up to step 4\n" in training.output
    assert project.compare(whole.outcome) == []
    kill_before_each(sample(turns_before(APPEND, training.operations), most=10), nursery, whole, branching, tmp_path)


@pytest.mark.slow
def test_killed_as_it_branches_off_and_then_the_other_run_is_gone(
    nursery: Nursery, whole: Whole, branching: Project, tmp_path: Path
) -> None:
    project = branching.copy(tmp_path / "project")
    nursery.run(project, "KILL os.rename identity.json 1")
    shutil.rmtree(project.find_run(SHORT))
    again = nursery.run(project)
    assert "which is the same up to step 3\n" in again.output
    assert project.compare(whole.outcome) == []


@pytest.mark.slow
def test_killed_as_a_complete_run_starts_afresh(
    nursery: Nursery, whole: Whole, project: Project, tmp_path: Path
) -> None:
    nursery.run(project)
    again = project.copy(tmp_path / "again")
    training = nursery.run(again, "SHOW * * 0")
    assert "starting afresh" in training.output
    assert "branching off" not in training.output, "what it takes over may be another code's"
    kill_before_each(sample(turns_before(APPEND, training.operations), most=6), nursery, whole, project, tmp_path)


@pytest.mark.slow
def test_the_real_stage_killed_as_it_is_marked_complete(whole: Whole, project: Project) -> None:
    """With nothing left out: MLflow too has every point once, in one run."""

    def train(**more: str) -> subprocess.CompletedProcess[str]:
        command, environment = [sys.executable, "-m", "stages.train"], make_environment(**more)
        return subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, check=False)

    killed = train(SABOTAGE="stages.train KILL os.rename summary.json 1")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = train()
    assert again.returncode == 0, again.stderr
    assert "going on from step 12\n" in again.stdout
    assert project.compare(whole.outcome) == []
    with closing(sqlite3.connect(project.folder / "mlflow.db")) as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
        points = database.execute("select step from metrics where key = 'train_loss' order by step").fetchall()
    assert [step for (step,) in points] == list(range(1, 13))
