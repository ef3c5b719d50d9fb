"""`dvc push` here and `dvc pull` there: by a folder, SSH, HTTP, HTTPS, WebDAV and S3, with servers on this machine."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from projects import Project, dvc, finished_once
from remote_servers import SERVERS, need, serve_read_only

pytestmark = finished_once

OUTPUTS = ("data/raw", "data/documents", "data/tokens", "models", "reports/samples")


@pytest.fixture
def alice(finished: Project, tmp_path: Path) -> Project:
    """Who has run the pipeline and shares it."""
    return finished.copy(tmp_path / "alice")


@pytest.fixture
def origin(alice: Project, tmp_path: Path) -> Project:
    """The git repository of both, which names a folder as DVC's remote; what Alice has is pushed to both."""
    alice.run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(tmp_path / "origin.git"))
    alice.run("git", "remote", "add", "origin", str(tmp_path / "origin.git"))
    alice.run("dvc", "remote", "add", "-d", "storage", str(tmp_path / "storage"))
    alice.commit("a remote")
    alice.run("git", "push", "--quiet", "origin", "main")
    alice.run("dvc", "push")
    return Project.at(tmp_path / "origin.git")


def tell(project: Project, secrets: Mapping[str, str]) -> None:
    for name, value in secrets.items():
        project.run("dvc", "remote", "modify", "--local", "storage", name, value)


def test_a_clone_pulls_what_was_pushed_to_a_folder(alice: Project, tmp_path: Path) -> None:
    dvc(alice.folder, "remote", "add", "--quiet", "-d", "storage", str(tmp_path / "storage"))
    alice.commit("a remote")
    dvc(alice.folder, "push", "--quiet")
    bob = alice.clone(tmp_path / "bob")
    dvc(bob.folder, "pull", "--quiet")
    assert bob.contents(*OUTPUTS) == alice.contents(*OUTPUTS)
    assert bob.status() == ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", SERVERS)
def test_a_fresh_clone_pulls_what_another_pushed_and_a_stranger_does_not(
    alice: Project, tmp_path: Path, kind: str
) -> None:
    with SERVERS[kind](tmp_path) as remote:
        alice.run("dvc", "remote", "add", "-d", "storage", remote.url)
        for name, value in remote.settings.items():
            alice.run("dvc", "remote", "modify", "storage", name, value)
        alice.commit("a remote")
        before = alice.contents(*OUTPUTS, ".dvc/cache", "dvc.lock")
        tell(alice, remote.secrets | remote.wrong)
        if remote.wrong:
            assert_refused(alice.run("dvc", "push", fails=True), remote.complaint)
            assert not [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]
        tell(alice, {name: remote.secrets[name] for name in remote.wrong})
        assert "files pushed" in alice.run("dvc", "push")
        assert alice.contents(*OUTPUTS, ".dvc/cache", "dvc.lock") == before

        bob = alice.clone(tmp_path / "bob")
        assert not any((bob.folder / path).exists() for path in ("models/gpt", "data/tokens", ".dvc/config.local"))
        tell(bob, remote.secrets | remote.wrong)
        if remote.wrong:
            assert_refused(bob.run("dvc", "pull", fails=True), remote.complaint_on_pull or remote.complaint)
            assert bob.status() == ""
        tell(bob, {name: remote.secrets[name] for name in remote.wrong})
        bob.run("dvc", "pull")
    assert bob.contents(*OUTPUTS) == alice.contents(*OUTPUTS)
    assert "Running stage" not in bob.run("dvc", "repro")
    assert bob.status() == ""


def assert_refused(output: str, complaint: str) -> None:
    assert complaint in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_web_server_of_files_is_enough_to_pull(origin: Project, tmp_path: Path) -> None:
    bob = origin.clone(tmp_path / "bob")
    with serve_read_only(tmp_path / "storage") as address:
        bob.run("dvc", "remote", "add", "web", address)
        bob.run("dvc", "pull", "--remote", "web")
        assert bob.status() == " M .dvc/config\n"
        assert "up to date" in bob.run("dvc", "repro")

        bob.run("dvc", "remote", "modify", "web", "url", f"{address}/elsewhere")
        assert "Unsupported method ('POST')" in bob.run("dvc", "push", "--remote", "web", fails=True)


@pytest.mark.slow
def test_a_folder_that_one_may_not_write_to(alice: Project, tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir(mode=0o555)
    alice.run("dvc", "remote", "add", "-d", "storage", str(tmp_path / "storage"))
    # Root writes everywhere unless this is taken from it.
    drop = [need("setpriv", "apt-get install util-linux"), "--bounding-set", "-dac_override"]
    output = alice.run(*(drop if os.getuid() == 0 else []), "dvc", "push", fails=True)
    assert f"Permission denied: '{tmp_path / 'storage'}" in output
    assert "Traceback" not in output
    (tmp_path / "storage").chmod(0o755)
    assert "files pushed" in alice.run("dvc", "push")


@pytest.mark.slow
def test_an_experiment_reaches_a_colleague_and_the_run_cache_with_the_whole_cache(
    alice: Project, origin: Project, tmp_path: Path
) -> None:
    alice.run("dvc", "exp", "run", "--name", "short", "--set-param", "sample.max_new_tokens=7")
    alice.run("dvc", "exp", "push", "origin", "short")
    bob = origin.clone(tmp_path / "bob")
    assert "short" in bob.run("dvc", "exp", "list", "origin")
    bob.run("dvc", "exp", "pull", "origin", "short")
    bob.run("dvc", "pull")
    bob.run("dvc", "exp", "apply", "short")
    assert bob.contents(*OUTPUTS, "reports", "dvc.lock") == alice.contents(*OUTPUTS, "reports", "dvc.lock")
    assert "up to date" in bob.run("dvc", "repro")

    # Of former runs, `dvc push --run-cache` sends the records and not what they made: metrics are in git alone.
    alice.run("dvc", "push", "--run-cache")
    carol = origin.clone(tmp_path / "carol")
    shutil.copy(alice.folder / "params.yaml", carol.folder)
    carol.run("dvc", "pull", "--run-cache")
    assert "Running stage 'sample'" in carol.run("dvc", "repro", "--pull", "--dry")
    alice.run("cp", "--recursive", "--no-clobber", ".dvc/cache/.", str(tmp_path / "storage"))
    assert "Running stage" not in carol.run("dvc", "repro", "--pull")
    assert carol.contents(*OUTPUTS, "reports", "dvc.lock") == alice.contents(*OUTPUTS, "reports", "dvc.lock")


@pytest.mark.slow
def test_a_version_of_the_model_goes_by_a_tag(alice: Project, origin: Project, tmp_path: Path) -> None:
    alice.run("git", "tag", "--annotate", "gpt@v1.0.0", "--message", "the first")
    first = {Path(path).name: body for path, body in alice.contents("models/gpt").items()}
    lineage = alice.folder / "models" / "gpt" / "lineage.json"
    text = lineage.read_text() + "\n"
    lineage.unlink()
    lineage.write_text(text)
    alice.run("dvc", "commit", "--force", "train")
    alice.commit("another model")
    alice.run("git", "tag", "--annotate", "gpt@v2.0.0", "--message", "the second")
    alice.run("dvc", "push", "--all-tags")
    alice.run("git", "push", "--quiet", "origin", "main", "gpt@v1.0.0", "gpt@v2.0.0")

    bob = origin.clone(tmp_path / "bob")  # `dvc get` outside of a project counts itself as used, over the network
    repository = str(origin.folder)
    bob.run("dvc", "artifacts", "get", repository, "gpt", "--rev", "v1.0.0", "--out", "first")
    bob.run("dvc", "artifacts", "get", repository, "gpt", "--out", "newest")
    bob.run("dvc", "get", repository, "models/gpt", "--rev", "gpt@v1.0.0", "--out", "same")
    assert {Path(path).name: body for path, body in bob.contents("first").items()} == first
    assert {Path(path).name: body for path, body in bob.contents("same").items()} == first
    newest = {Path(path).name: body for path, body in bob.contents("newest").items()}
    assert newest == {**first, "lineage.json": text.encode()}
    output = bob.run("dvc", "artifacts", "get", repository, "gpt", "--rev", "v3.0.0", fails=True)
    assert "Unable to find artifact 'gpt @ v3.0.0'" in output


def inodes(folder: Path) -> set[tuple[int, int]]:
    """Of all files in it, through links."""
    return {(path.stat().st_dev, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_outputs_are_links_into_the_cache_and_a_team_can_share_one(origin: Project, tmp_path: Path) -> None:
    cache, (bob, carol) = tmp_path / "cache", [origin.clone(tmp_path / name) for name in ("bob", "carol")]
    probe = ["cp", "--reflink=always", bob.folder / "dvc.lock", tmp_path / "probe"]
    if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        pytest.skip("this file system shares bytes by reflink: files have inodes of their own")
    for project in (bob, carol):
        project.run("dvc", "cache", "dir", "--local", str(cache))
        project.run("dvc", "config", "--local", "cache.shared", "group")
    assert "files fetched" in bob.run("dvc", "pull")
    assert "fetched" not in carol.run("dvc", "pull")
    for project in (bob, carol):
        assert inodes(project.folder / "models" / "gpt") <= inodes(cache)
        assert not (project.folder / ".dvc" / "cache").exists()
        assert project.status() == ""
    assert {path.stat().st_mode & 0o070 for path in (cache / "files").rglob("*") if path.is_dir()} == {0o070}


@pytest.mark.slow
def test_a_cache_on_another_file_system_is_copied_from_or_linked_to(origin: Project, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.exists() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    cache = memory / f"lmcore-test-{os.getpid()}"
    bob = origin.clone(tmp_path / "bob")
    try:
        bob.run("dvc", "cache", "dir", "--local", str(cache))
        bob.run("dvc", "pull")
        assert inodes(bob.folder / "models" / "gpt").isdisjoint(inodes(cache))
        bob.run("dvc", "config", "--local", "cache.type", "symlink")
        bob.run("dvc", "checkout", "--relink")
        assert inodes(bob.folder / "models" / "gpt") <= inodes(cache)
        bob.run("dvc", "repro", "--force", "--single-item", "download")  # replaces links, not what they lead to
        assert "up to date" in bob.run("dvc", "repro")
        assert bob.status() == ""
    finally:
        shutil.rmtree(cache)


@pytest.mark.slow
def test_without_the_data_dvc_knows_what_is_up_to_date_and_fetches_what_it_needs(
    origin: Project, tmp_path: Path
) -> None:
    bob = origin.clone(tmp_path / "bob")
    check = ["sh", "-c", "dvc repro --allow-missing --dry | grep 'are up to date'"]
    bob.run(*check)
    edit(bob, "path: corpus", "path: another")
    bob.run(*check, fails=True)
    edit(bob, "path: another", "path: corpus")
    edit(bob, "max_new_tokens: 8", "max_new_tokens: 9")
    bob.run(*check, fails=True)
    output = bob.run("dvc", "repro", "--pull", "--allow-missing")
    assert "Running stage 'sample'" in output
    assert "Running stage 'export'" not in output
    assert (bob.folder / "models" / "gpt").exists()
    assert not (bob.folder / "data" / "tokens").exists()

    bob.run("git", "checkout", "--quiet", ".")
    assert "Running stage" not in bob.run("dvc", "repro", "--pull")
    assert (bob.folder / "data" / "tokens").exists()
    assert bob.status() == ""


def edit(project: Project, old: str, new: str) -> None:
    path = project.folder / "params.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
