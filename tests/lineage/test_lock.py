"""dvc.lock and dvc.yaml as a graph, and folders hashed as DVC hashes them."""

import os
from pathlib import Path

import pytest
from projects import dvc

from lmcore.errors import ArtifactError, ParameterError
from lmcore.lineage.dvc_files import Project, hash_part, list_places, read_content
from lmcore.lineage.history import cut_stage
from lmcore.lineage.lock import Pipeline, parse_pipeline

LOCK = b"""\
schema: '2.0'
stages:
  make:
    cmd: make it
    deps:
    - path: lmcore/a.py
      hash: md5
      md5: aa
      size: 1
    params:
      params.yaml:
        hardware.device: cpu
        make:
          rate: 6e-05
          mode: no
          mix:
            a: 1
    outs:
    - path: data/raw
      hash: md5
      md5: bb.dir
      size: 10
      nfiles: 2
  use:
    cmd: use it
    deps:
    - path: data/raw/list.json
      hash: md5
      md5: cc
    outs:
    - path: reports/use.json
      hash: md5
      md5: dd
"""
PIPELINE = b"""\
stages:
  make:
    desc: Make it
    cmd: make it
    deps: [lmcore/a.py]
    outs: [data/raw]
  use:
    cmd: use it
    deps: [data/raw/list.json]
    metrics:
      - reports/use.json: {cache: false}
"""
PARAMS = b"hardware:\n  device: cpu\n  workers: 3\nmake:\n  rate: 0.00006\n  mode: no\n  mix:\n    a: 1\n"


def parse(lock: bytes = LOCK, pipeline: bytes = PIPELINE, params: bytes = PARAMS) -> Pipeline:
    return parse_pipeline({"dvc.lock": lock, "dvc.yaml": pipeline, "params.yaml": params}, "it")


def test_stages_are_read_as_dvc_reads_them() -> None:
    pipeline = parse()
    make = pipeline.stages["make"]
    assert make.params == {"hardware.device": "cpu", "make.rate": 6e-05, "make.mode": "no", "make.mix.a": 1}
    assert [entry.path for entry in make.code] == ["lmcore/a.py"]
    assert not make.data
    (raw,) = make.outputs
    assert (raw.is_folder, raw.files, raw.bytes) == (True, 2, 10)
    assert pipeline.find_output("data/raw/files/a.txt") == (make, raw)
    assert pipeline.find_output("data/rawer") is None
    assert [stage.name for stage in pipeline.walk_back("use")] == ["use", "make"]
    assert pipeline.is_cached("make", "data/raw")
    assert not pipeline.is_cached("use", "reports/use.json")


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        (b"0.00006", b"6e-05", []),
        (b"workers: 3", b"workers: 4", []),
        (b"device: cpu", b"device: cuda", [("hardware.device", "cpu", "cuda")]),
        (b"mode: no", b"mode: false", [("make.mode", "no", False)]),
        (b"a: 1", b"b: 1", [("make.mix.a", 1, None), ("make.mix.b", None, 1)]),
        (b"  mode: no\n", b"", [("make.mode", "no", None)]),
        (b"  mode: no\n", b"  mode: no\n  more: 2\n", [("make.more", None, 2)]),
    ],
)
def test_parameters_that_changed(old: bytes, new: bytes, changes: list[tuple[str, object, object]]) -> None:
    assert old in PARAMS
    pipeline = parse(params=PARAMS.replace(old, new))
    found = pipeline.find_changed_params(pipeline.stages["make"])
    assert [(change.key, change.old, change.new) for change in found] == changes


@pytest.mark.parametrize(
    "lock", [b"", LOCK[:60], b"stages: {}\n", b"[1]", b"\xff\xfe", LOCK.replace(b"path:", b"past:")]
)
def test_a_torn_lock_is_one_line_with_the_way_out(lock: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"dvc\.lock is damaged: git checkout dvc\.lock, then dvc repro"):
        parse(lock=lock)


def test_other_files_that_are_not_what_dvc_writes() -> None:
    with pytest.raises(ParameterError, match=r"it: dvc\.yaml is not valid YAML: line 1"):
        parse(pipeline=b"{")
    with pytest.raises(ParameterError, match=r"it: dvc\.yaml does not describe stages"):
        parse(pipeline=b"stages: [1]")
    with pytest.raises(ArtifactError, match=r"it has no dvc\.lock: nothing is recorded there"):
        parse_pipeline({}, "it")
    with pytest.raises(ArtifactError, match=r"data/raw has no MD5"):
        parse(lock=LOCK.replace(b"md5: bb.dir", b"etag: bb"))


def test_stages_that_read_from_each_other() -> None:
    circular = LOCK.replace(b"lmcore/a.py", b"reports/use.json")
    with pytest.raises(ArtifactError, match="use and make read from each other"):
        parse(lock=circular).walk_back("use")


def test_a_stages_lines_are_cut_out_of_the_lock() -> None:
    assert cut_stage(LOCK, "use") == LOCK[LOCK.index(b"    cmd: use it") :]
    assert cut_stage(LOCK, "make") == LOCK[LOCK.index(b"    cmd: make it") : LOCK.index(b"  use:")]
    assert cut_stage(LOCK, "us") is None
    assert cut_stage(None, "use") is None


def test_folders_are_hashed_as_dvc_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvc add` of a folder with odd names, ignored files, links and nothing in some of its folders."""
    folder = tmp_path / "folder"
    names = ["b.txt", "a/b", "a/c/d.bin", "a.txt", "ä/ö \n.txt", "a-b", "__pycache__/no.pyc", ".hidden"]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(number * 700_000))
    (folder / "empty").mkdir()
    (tmp_path / "elsewhere").write_bytes(b"\r\nelsewhere")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".dvcignore").write_text("__pycache__/\n")
    dvc(tmp_path, "init", "--no-scm", "--quiet")
    dvc(tmp_path, "add", "--quiet", "folder", "elsewhere")
    project = Project(tmp_path)
    assert f"md5: {project.hash('folder')}\n" in (tmp_path / "folder.dvc").read_text()
    assert f"md5: {project.hash('elsewhere')}\n" in (tmp_path / "elsewhere.dvc").read_text()
    assert "__pycache__/no.pyc" not in project.contents("folder")
    assert project.ignores("folder/__pycache__/no.pyc")
    listed = {name: content.md5 for name, content in project.contents("folder").items()}
    assert hash_part(listed, "a") == Project(tmp_path).hash("folder/a")
    assert hash_part(listed, "b.txt") == read_content(folder / "b.txt").md5
    assert hash_part(listed, "none") is None
    assert project.hash("nothing") is None


def test_what_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read_content(tmp_path / "pipe").error == "neither a file nor a folder"
    (tmp_path / "link").symlink_to("nowhere")
    assert read_content(tmp_path / "link").error == "a link that leads nowhere"
    assert read_content(tmp_path / "gone").error == "gone while it was read"


def test_places_in_a_project_behind_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "models").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "real" / "models")
    for name in ("gpt", "models/gpt", str(tmp_path / "link/models/gpt"), str(tmp_path / "real/models/gpt")):
        assert "models/gpt" in list_places(name, tmp_path / "link")
    assert list_places("../../else", tmp_path / "link") == []
