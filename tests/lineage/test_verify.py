"""`lmcore verify` on a real project: every kind of damage is found and named, and what it advises mends it."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from damage import flip, mend
from projects import Project, finished_once

from lmcore.errors import ParameterError
from lmcore.lineage.report import describe_verification, render_verification
from lmcore.lineage.verify import Artefact, Verification, verify

pytestmark = finished_once


def damaged(found: Verification) -> list[Artefact]:
    return [artefact for artefact in found.artefacts if artefact.state == "damaged"]


def run_key(project: Project) -> str:
    return str(json.loads((project.folder / "models/gpt/lineage.json").read_text())["run_key"])


def test_all_that_was_made_is_sound(project: Project) -> None:
    found = verify(cache=True)
    assert found.is_sound
    assert {artefact.state for artefact in found.artefacts} == {"ok"}
    by_path = {artefact.path: artefact for artefact in found.artefacts}
    assert by_path["data/raw"].files == 61
    assert by_path["data/raw"].bytes == sum(map(len, project.contents("data/raw").values()))
    assert f"runs/{run_key(project)}" in by_path
    made = sum(artefact.bytes for artefact in found.artefacts)
    assert found.bytes == made
    assert project.status() == ""


@pytest.mark.slow
def test_the_command_says_so_and_its_exit_status(project: Project) -> None:
    lines = project.run("lmcore", "verify").splitlines()
    assert lines[0].split()[:2] == ["ok", "data/raw"]
    assert lines[-1].startswith("read ")
    flip(project.folder / "models/gpt/model.safetensors")
    values = json.loads(project.run("lmcore", "verify", "--json", "models", fails=True))
    assert not values["sound"]
    assert {artefact["path"] for artefact in values["artefacts"]} == {"models/tokenizer", "models/gpt", "models/export"}


FLIPPED = {
    "data/raw/manifest.json": "data/raw",
    "data/raw/files/07.txt": "data/raw",
    "data/documents/train/part-00000.parquet": "data/documents",
    "data/tokens/train-00000.npy": "data/tokens",
    "data/tokens/validation-documents.npy": "data/tokens",
    "models/tokenizer/tokenizer.json": "models/tokenizer",
    "models/gpt/model.safetensors": "models/gpt",
    "models/gpt/lineage.json": "models/gpt",
    "models/export/model.safetensors": "models/export",
    "reports/samples/samples.jsonl": "reports/samples",
    "reports/metrics/train.json": "reports/metrics/train.json",
    "reports/plots/training.csv": "reports/plots/training.csv",
}


def flip_everywhere(project: Project) -> list[Artefact]:
    """Damage every file of FLIPPED; what is found."""
    for path in FLIPPED:
        flip(project.folder / path)
    return damaged(verify())


def test_a_flipped_bit_is_found_anywhere(project: Project) -> None:
    bad = flip_everywhere(project)
    found = {f"{one.path}/{fault.file}".removesuffix("/."): fault.text for one in bad for fault in one.faults}
    assert found.keys() == FLIPPED.keys()
    assert all("differs: MD5 " in text for text in found.values())
    assert {one.path for one in bad} == set(FLIPPED.values())


@pytest.mark.slow
def test_the_remedies_of_flipped_bits_mend_them(project: Project) -> None:
    before = project.contents("data", "models", "reports")
    for one in flip_everywhere(project):
        assert one.remedy is not None
        mend(project, one.remedy)
    assert project.contents("data", "models", "reports") == before
    assert verify().is_sound


def test_cut_off_gone_and_extra_files(project: Project) -> None:
    tokens = project.folder / "data/tokens"
    (tokens / "extra.npy").write_bytes(b"1")
    (tokens / "train-documents.npy").unlink()
    with (tokens / "train-00000.npy").open("r+b") as file:
        file.truncate(100)
    (bad,) = damaged(verify())
    told = {fault.file: fault.text for fault in bad.faults}
    assert told["extra.npy"] == "is there beside what dvc.lock records"
    assert told["train-documents.npy"] == "is gone; DVC's cache has it sound"
    assert told["train-00000.npy"].startswith("differs: MD5 ")
    assert bad.remedy == "rm -r data/tokens && dvc checkout data/tokens"
    mend(project, bad.remedy)
    assert verify().is_sound


@pytest.mark.slow
def test_what_is_not_there_is_missing_and_not_wrong(project: Project) -> None:
    shutil.rmtree(project.folder / "reports/samples")
    shutil.rmtree(project.folder / "models/export")
    objects = [entry for entry in project.contents(".dvc/cache/files") if entry.endswith(".dir")]
    assert objects
    found = verify(["reports", "models/export"])
    assert found.is_sound
    missing = {artefact.path: artefact.remedy for artefact in found.artefacts if artefact.state == "missing"}
    assert missing == {
        "reports/samples": "dvc checkout reports/samples",
        "models/export": "dvc checkout models/export",
    }
    shutil.rmtree(project.folder / ".dvc/cache")
    (artefact,) = [artefact for artefact in verify().artefacts if artefact.path == "reports/samples"]
    assert artefact.remedy == "dvc repro sample"
    project.run("dvc", "remote", "add", "--default", "storage", str(project.folder.parent / "storage"))
    (artefact,) = [artefact for artefact in verify().artefacts if artefact.path == "reports/samples"]
    assert artefact.remedy == "dvc pull reports/samples"


@pytest.mark.slow
def test_links(project: Project) -> None:
    place = project.folder / "reports/samples/samples.md"
    place.rename(project.folder.parent / "elsewhere.md")
    place.symlink_to(project.folder.parent / "elsewhere.md")
    assert verify().is_sound  # the same bytes, as DVC sees it
    (project.folder.parent / "elsewhere.md").unlink()
    (bad,) = damaged(verify())
    assert (bad.faults[0].file, bad.faults[0].text) == ("samples.md", "a link that leads nowhere")
    assert bad.remedy is not None
    mend(project, bad.remedy)
    assert verify().is_sound


@pytest.mark.slow
def test_damage_behind_a_hard_link_is_in_the_cache_too(project: Project) -> None:
    path = project.folder / "models/tokenizer/tokenizer.json"
    before = path.read_bytes()
    shutil.rmtree(path.parent)
    project.run("dvc", "checkout", "models/tokenizer")
    assert path.stat().st_nlink == 2, "this test needs a file system with hard links"
    flip(path)
    assert "up to date" in project.run("dvc", "status"), "DVC does not see it"
    (bad,) = damaged(verify())
    assert "by a hard link: `dvc checkout` would not help" in bad.faults[0].text
    assert bad.remedy is not None
    assert bad.remedy.startswith("rm -r -f models/tokenizer .dvc/cache/files/md5/")
    mend(project, bad.remedy)
    assert path.read_bytes() == before
    assert verify(cache=True).is_sound
    assert project.status() == ""


@pytest.mark.slow
def test_a_damaged_copy_in_the_cache_is_found_when_asked_for(project: Project) -> None:
    object_path = next(path for path in (project.folder / ".dvc/cache/files/md5").rglob("*") if path.suffix == ".dir")
    flip(object_path)
    assert verify().is_sound
    found = verify(cache=True)
    assert not found.is_sound
    (bad,) = damaged(found)
    assert bad.path == "DVC's cache"
    assert [fault.file for fault in bad.faults] == [str(object_path.relative_to(project.folder))]
    assert bad.remedy is not None
    mend(project, bad.remedy)
    assert verify(cache=True).is_sound


def test_both_copies_damaged(project: Project) -> None:
    path = project.folder / "models/gpt/config.json"
    (artefact,) = (entry for entry in verify(["models/gpt"]).artefacts)
    assert artefact.state == "ok"
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    flip(path)
    flip(project.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:])
    (bad,) = damaged(verify(["models/gpt"]))
    assert "DVC's cache has it damaged too" in bad.faults[0].text
    assert bad.remedy is not None
    assert f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]} && dvc repro train" in bad.remedy


@pytest.mark.parametrize("damage", ["flipped", "torn", "gone", "seal"])
def test_checkpoints_and_their_seals(project: Project, damage: str) -> None:
    run = project.folder / "runs" / run_key(project)
    first = min((run / "checkpoints").glob("*.safetensors"))
    if damage == "flipped":
        flip(first)
    elif damage == "torn":
        first.write_bytes(first.read_bytes()[:-1])
    elif damage == "gone":
        first.unlink()
    else:
        first.with_suffix(".json").write_text("{")
    (bad,) = damaged(verify())
    words = {"flipped": "differs: SHA-256", "torn": "is torn", "gone": "is gone", "seal": "its seal is damaged"}
    assert bad.path == f"runs/{run.name}"
    assert words[damage] in bad.faults[0].text
    assert bad.remedy is not None
    mend(project, bad.remedy)
    assert verify().is_sound


def test_a_run_that_is_not_what_its_name_says(project: Project) -> None:
    path = project.folder / "runs" / run_key(project) / "identity.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))
    (bad,) = damaged(verify())
    assert bad.faults[0].file == "identity.json"
    assert "makes the key" in bad.faults[0].text


@pytest.mark.parametrize("content", ["", "schema: '2.0'\nstages:\n  download:\n    cmd: ["])
def test_a_torn_lock_leaves_the_manifests(project: Project, content: str) -> None:
    (project.folder / "dvc.lock").write_text(content)
    found = verify()
    assert [artefact.path for artefact in damaged(found)] == ["dvc.lock"]
    states = {artefact.path: artefact.state for artefact in found.artefacts}
    assert (states["data/raw"], states["data/tokens"], states["models/gpt"]) == ("ok", "ok", "unrecorded")
    flip(project.folder / "data/raw/files/07.txt")
    flip(project.folder / "data/tokens/train-00000.npy")
    with (project.folder / "models/gpt/model.safetensors").open("r+b") as file:
        file.truncate(5000)
    found = verify()
    told = {artefact.path: artefact.faults for artefact in damaged(found)}
    assert "manifest.json has" in told["data/raw"][0].text
    assert "manifest.json has" in told["data/tokens"][0].text
    assert "its header" in told["models/gpt"][0].text
    remedy = next(artefact.remedy for artefact in damaged(found) if artefact.path == "dvc.lock")
    assert remedy is not None
    assert remedy.startswith("git checkout dvc.lock")
    project.run("git", "checkout", "dvc.lock")
    assert {artefact.path for artefact in damaged(verify())} == {"data/raw", "data/tokens", "models/gpt"}


def test_no_lock_and_nothing_made(project: Project) -> None:
    (project.folder / "dvc.lock").unlink()
    found = verify()
    assert found.is_sound
    assert found.artefacts[0].state == "missing"
    shutil.rmtree(project.folder / "models/gpt")
    (artefact,) = verify(["models/gpt"]).artefacts[1:]
    assert (artefact.state, artefact.remedy) == ("missing", "dvc repro train")


@pytest.mark.slow
def test_tokens_of_another_tokenizer_are_a_contradiction(project: Project) -> None:
    """Both are what dvc.lock says, if somebody made it say so."""
    path = project.folder / "models/tokenizer/tokenizer.json"
    path.write_bytes(path.read_bytes() + b"\n")
    project.run("dvc", "commit", "--force", "train_tokenizer")
    found = verify(["models", "data/tokens"])
    assert not damaged(found)
    assert not found.is_sound
    kinds = {mismatch.kind for mismatch in found.mismatches}
    assert kinds == {"tokenizer"}
    assert any("data/tokens was made by tokenizer" in line for line in render_verification(found))
    assert describe_verification(found)["mismatches"][0]["remedy"].startswith("dvc repro --force --single-item encode")


def test_names_that_nothing_is_known_of(project: Project) -> None:
    with pytest.raises(ParameterError, match="nowhere: nothing is recorded of it; there are data/raw, "):
        verify(["nowhere"])


def test_a_folder_that_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParameterError, match=r"holds no dvc.yaml: run in the project's folder"):
        verify()
