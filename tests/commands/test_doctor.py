"""What the doctor finds: nothing in a project that is well, and each thing that is not, with its remedy."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from dvc.utils.hydra import apply_overrides  # type: ignore[import-untyped]
from imports import ROOT
from projects import dvc

from lmcore.commands import doctor, forecast
from lmcore.commands.doctor import examine
from lmcore.commands.killed import Finding
from lmcore.download.download import download
from lmcore.download.params import DownloadParams
from lmcore.encode.pretokenized import take_tokens
from lmcore.errors import ParameterError
from lmcore.files import write_json
from lmcore.params import read_params
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokens.checksums import VerifiedFiles
from lmcore.train.run_state import open_run

COMMITTED = read_params(ROOT / "params.yaml")
IDENTITY = {"model": COMMITTED["model"], "train": COMMITTED["train"], "tokens": "a", "tokenizer": "b"}
DEAD = 2**22 + 1  # above Linux's largest process id


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that is well, in a git repository where all is committed."""
    monkeypatch.setattr(forecast, "measure_peak", lambda *_: 1e12)
    monkeypatch.setattr(doctor, "measure_peak", lambda *_: 1e12)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("profile: auto", "profile: cpu"), encoding="utf-8")
    (tmp_path / ".gitignore").write_text("/runs/\n/.dvc/\n.*.partial-*\n")
    git(tmp_path, "init", "--initial-branch=main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message=all")
    return tmp_path


def found(project: Path) -> list[Finding]:
    """What is worth a thought or needs the user."""
    return [finding for finding in examine(project) if finding.remedy]


def test_a_project_that_is_well(project: Path) -> None:
    findings = list(examine(project))
    assert not any(finding.needs_user or finding.remedy for finding in findings)
    text = "\n".join(map(str, findings))
    assert f"ok    Python {sys.version.split()[0]}, torch " in text
    assert "params.yaml: 1.02 M parameters, 1.84 M tokens, about 28 s of training here (estimated: 6 operations" in text
    assert "matrix products measured at 1,000 GFLOP/s" in text
    assert "ok    git: nothing differs from commit " in text


def test_text_that_changed_since_is_noted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "mine.txt").write_text("one")
    monkeypatch.setenv("DVC_ROOT", str(project))
    params = DownloadParams(source="stdlib", path="mine.txt", url=None, sha256=None, mix=None)
    download(params, project / "data" / "raw")
    git(project, "add", ".")
    git(project, "commit", "--message=text")
    assert not found(project)
    (project / "mine.txt").write_text("two")
    git(project, "commit", "--all", "--message=changed")
    (finding,) = found(project)
    assert finding.text == "1 files of your text have changed since download: mine.txt"
    assert finding.remedy == "dvc repro --force download, then dvc repro"


def test_tokens_of_others_that_changed_since_are_noted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(project))
    (project / "theirs").mkdir()
    for name in ("train.txt", "val.txt"):
        (project / "theirs" / name).write_text("1 2 3")
    take_tokens("theirs", 9, ByteTokenizer.create(), project / "data" / "tokens", VerifiedFiles())
    git(project, "add", ".")
    git(project, "commit", "--message=tokens")
    assert not found(project)
    (project / "theirs" / "val.txt").write_text("1 2 4")
    git(project, "commit", "--all", "--message=changed")
    (finding,) = found(project)
    assert finding.text == "1 files of encode.tokenized have changed since encode: val.txt"
    assert finding.remedy == "dvc repro --force encode, then dvc repro"


def test_a_folder_that_is_no_project(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"holds no dvc.yaml: run in the project's folder"):
        list(examine(tmp_path))


def test_a_missing_package(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", {"DVC": "no-such-package-anywhere"})
    assert Finding("DVC is not installed", "make setup", needs_user=True) in found(project)


def test_parameters_that_are_not_valid(project: Path) -> None:
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("batch_size: 4 ", "batch_size: 0 "))
    problem, change = found(project)
    assert str(problem) == "MEND  train.batch_size=0: must be greater than or equal to 1  =>  edit params.yaml"
    assert not change.needs_user


def test_too_little_memory(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmcore.train.memory.available_memory", lambda *_: 10**6)
    (problem,) = found(project)
    assert problem.needs_user
    assert problem.text.startswith("memory: hardware.micro_batch_size=")


def test_too_little_disk(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    (problem,) = found(project)
    assert problem.needs_user
    assert problem.text == "disk: 1 MB free, checkpoints take up to 61 MB"


class TestGit:
    def test_uncommitted_changes_and_no_branch_are_worth_a_thought(self, project: Path) -> None:
        git(project, "switch", "--detach")
        (project / "new").write_text("")
        detached, dirty = found(project)
        assert "on no branch" in detached.text
        assert detached.remedy == "git switch --create NAME"
        assert "1 files differ from commit" in dirty.text
        assert not any(finding.needs_user for finding in (detached, dirty))

    def test_no_repository(self, project: Path) -> None:
        shutil.rmtree(project / ".git")
        (problem,) = found(project)
        assert problem.text.startswith("git: fatal: not a git repository")
        assert (problem.remedy, problem.needs_user) == ("git init", True)

    def test_no_git(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(project / "empty"))
        (problem,) = found(project)
        assert (problem.text, problem.needs_user) == ("git is not installed, and DVC needs it", True)


class TestRuns:
    def start(self, project: Path, identity: dict[str, object], *steps: int) -> str:
        """A run that saved these steps and stopped; its key."""
        with open_run(project / "runs", identity) as run:
            (run.folder / "checkpoints").mkdir()
            for step in steps:
                write_json(run.folder / "checkpoints" / f"step-{step:08d}.json", {})
            return run.key

    def test_one_that_stopped_goes_on(self, project: Path) -> None:
        key = self.start(project, IDENTITY, 200, 400)
        (problem,) = found(project)
        assert problem.text.startswith(f"runs/{key} stopped at step 400")
        assert (problem.remedy, problem.needs_user) == (f"dvc repro, or rm -r runs/{key}", True)

    def test_one_of_other_parameters_names_them(self, project: Path) -> None:
        train = {**COMMITTED["train"], "max_steps": None, "epochs": 2.0, "schedule": "wsd"}
        key = self.start(project, {**IDENTITY, "train": train})
        (problem,) = found(project)
        command = "dvc exp run -S train.max_steps=null -S train.epochs=2.0 -S train.schedule=wsd"
        assert problem.remedy == f"{command}, or rm -r runs/{key}"
        assert "at step 0" in problem.text

    def test_one_of_another_version_does_not_go_on(self, project: Path) -> None:
        model = {key: value for key, value in IDENTITY["model"].items() if key != "diffusion"}
        self.start(project, {**IDENTITY, "model": model})
        [problem] = [finding for finding in found(project) if "runs/" in finding.text]
        assert "in another version of lmcore and does not go on" in problem.text
        assert (problem.remedy or "").startswith("rm -r runs/")

    def test_a_mixture_is_spelt_for_dvc(self, project: Path) -> None:
        """Which adds to the names that are there, unless the key is emptied first."""
        mixed = {"stdlib": 0.7, "tinyshakespeare": 0.3}
        self.start(project, {**IDENTITY, "train": {**COMMITTED["train"], "mixture": mixed}})
        command = "dvc exp run -S 'train.mixture={stdlib:0.7,tinyshakespeare:0.3}'"
        assert (found(project)[0].remedy or "").startswith(f"{command}, or rm")
        params = project / "params.yaml"
        apply_overrides(params, ["train.mixture={other:1}"])
        remedy = next(finding.remedy for finding in found(project) if "runs/" in finding.text) or ""
        settings = shlex.split(remedy.partition(", or rm")[0].removeprefix("dvc exp run"))
        apply_overrides(params, [setting for setting in settings if setting != "-S"])
        assert read_params(params)["train"]["mixture"] == mixed

    def test_a_complete_one_is_well(self, project: Path) -> None:
        with open_run(project / "runs", IDENTITY) as run:
            run.complete({})
        assert not found(project)

    def test_one_at_work_is_well_and_says_whose(self, project: Path) -> None:
        with open_run(project / "runs", IDENTITY) as run:
            (line,) = [finding for finding in examine(project) if run.key in finding.text]
        assert line.remedy is None
        expected = f"process {os.getpid()} (" if Path("/proc").exists() else "another process"
        assert f"is being trained by {expected}" in line.text

    def test_a_damaged_one_can_go(self, project: Path) -> None:
        key = self.start(project, IDENTITY)
        (project / "runs" / key / "identity.json").write_text("{")
        assert found(project) == [
            Finding(f"runs/{key}/identity.json is damaged", f"rm -r runs/{key}", needs_user=True),
        ]


class TestDvcLock:
    def write(self, project: Path, content: object) -> None:
        write_json(project / ".dvc" / "tmp" / "rwlock", content)

    def test_dvc_at_work_is_well(self, project: Path) -> None:
        program = "import sys; sys.stdin.read()"
        with subprocess.Popen([sys.executable, "-c", program, "dvc", "repro"], stdin=subprocess.PIPE) as process:
            self.write(project, {"read": {"data": [{"pid": process.pid, "cmd": "dvc repro"}]}})
            assert f"`dvc repro` is at work as process {process.pid}" in [finding.text for finding in examine(project)]
            assert not found(project)

    def test_what_a_killed_dvc_left_is_passed_over(self, project: Path) -> None:
        self.write(project, {"write": {"data": {"pid": DEAD, "cmd": "dvc repro"}}})
        (note,) = found(project)
        assert not note.needs_user
        assert note.remedy == "rm .dvc/tmp/rwlock"

    @pytest.mark.skipif(not Path("/proc").exists(), reason="what a process runs is read from /proc")
    def test_but_not_when_its_number_is_another_programs(self, project: Path) -> None:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            self.write(project, {"write": {"data": {"pid": process.pid, "cmd": "dvc repro"}}})
            (problem,) = found(project)
            process.communicate(b"\n")
        assert problem.needs_user
        assert "is another program now" in problem.text

    @pytest.mark.parametrize("text", ["{", "[]", '{"read": {"a": [{}]}}'])
    def test_a_damaged_one_stops_dvc(self, project: Path, text: str) -> None:
        path = project / ".dvc" / "tmp" / "rwlock"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        (problem,) = found(project)
        assert (problem.remedy, problem.needs_user) == ("rm .dvc/tmp/rwlock", True)


class TestLeftovers:
    def test_what_a_killed_writer_left(self, project: Path) -> None:
        (project / f".params.yaml.partial-{DEAD}").mkdir()
        place = project / "data" / f".raw.partial-{DEAD}"
        (place / "old").mkdir(parents=True)
        (project / "data" / f".tokens.partial-{os.getpid()}").mkdir()  # at work
        first, second = found(project)
        assert (first.remedy, first.needs_user) == (f"rm -r .params.yaml.partial-{DEAD}", False)
        assert second.text == f"data/.raw.partial-{DEAD}/old is all there is of raw"
        assert second.remedy == f"mv data/.raw.partial-{DEAD}/old data/raw && rm -r data/.raw.partial-{DEAD}"
        assert second.needs_user
        subprocess.run(second.remedy, shell=True, check=True, cwd=project)
        assert (project / "data" / "raw").is_dir()
        assert not place.exists()


@pytest.mark.parametrize("content", ["", "schema: '2.0'\nstages:\n  download:\n    cmd: [", "stages: {}\n"])
def test_a_lock_file_that_was_cut_off(project: Path, content: str) -> None:
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    git(project, "add", ".")
    git(project, "commit", "--message=lock")
    assert found(project) == []
    (project / "dvc.lock").write_text(content)
    [problem] = [finding for finding in found(project) if finding.needs_user]
    assert problem.text == "dvc.lock is damaged, and DVC will not start"
    assert problem.remedy is not None
    assert problem.remedy.startswith("git checkout dvc.lock")


def test_a_secret_in_what_git_has_and_the_remedy_that_moves_it(project: Path) -> None:
    def run(command: str) -> None:
        subprocess.run(command, shell=True, cwd=project, check=True, capture_output=True)

    dvc(project, "init", "--quiet")
    dvc(project, "remote", "add", "storage", "s3://bucket/place")
    dvc(project, "remote", "modify", "storage", "secret_access_key", "known")
    git(project, "add", ".")
    git(project, "commit", "--message=remote")
    (problem,) = found(project)
    assert problem.needs_user
    assert problem.text == ".dvc/config, which git has, holds a secret of the remote storage: secret_access_key"
    assert problem.remedy is not None
    commands = problem.remedy.removesuffix("; a new secret if this one was pushed")
    run(commands.replace("VALUE", "new"))
    assert found(project) == []
    assert "secret_access_key = new" in (project / ".dvc" / "config.local").read_text()
    (project / ".dvc" / "config").write_text("[core")
    assert ".dvc/config is damaged" in found(project)[-1].text
