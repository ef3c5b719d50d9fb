"""Files: written whole or not at all, whatever happens to the writer."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.errors import ArtifactError
from lmcore.files import fingerprint, project_root, read_json, sha256_file, write_file, write_folder, write_json

ROOT = Path(__file__).parents[1]

FILE_WRITER = """
from pathlib import Path
from lmcore.errors import report_errors
from lmcore.files import write_file
with report_errors(), write_file(Path("out")) as file:
    file.write(b"new" * 1_000_000)
    {ending}
"""
FOLDER_WRITER = """
from pathlib import Path
from lmcore.errors import report_errors
from lmcore.files import write_folder
with report_errors(), write_folder(Path("out")) as folder:
    (folder / "part").write_bytes(b"new" * 1_000_000)
    {ending}
"""
KILL = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


def make_old_file(path: Path) -> None:
    path.write_bytes(b"old")


def make_old_folder(path: Path) -> None:
    path.mkdir()
    (path / "part").write_bytes(b"old")
    (path / "part").chmod(0o444)  # as DVC leaves an output that is hard-linked with its cache


BOTH = pytest.mark.parametrize(
    ("make_old", "program"), [(make_old_file, FILE_WRITER), (make_old_folder, FOLDER_WRITER)], ids=["file", "folder"]
)


def content(path: Path) -> bytes:
    """Of the file, or of the one file in the folder."""
    return (path / "part" if path.is_dir() else path).read_bytes()


def run(program: str, folder: Path, file_bytes: int = resource.RLIM_INFINITY) -> subprocess.CompletedProcess[str]:
    """Run `program` in `folder`, where no file may grow beyond `file_bytes`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    limited = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({file_bytes}, {file_bytes}))
{program}"""
    command = [sys.executable, "-c", limited]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@BOTH
def test_a_writer_replaces_what_was_there(make_old: Callable[[Path], None], program: str, tmp_path: Path) -> None:
    make_old(tmp_path / "out")
    assert run(program.format(ending="pass"), tmp_path).returncode == 0
    assert content(tmp_path / "out") == b"new" * 1_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@BOTH
def test_an_exception_leaves_the_old(make_old: Callable[[Path], None], program: str, tmp_path: Path) -> None:
    make_old(tmp_path / "out")
    result = run(program.format(ending="raise KeyboardInterrupt"), tmp_path)
    assert "interrupted" in result.stderr
    assert content(tmp_path / "out") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@BOTH
def test_a_killed_writer_leaves_the_old_and_is_cleared_away(
    make_old: Callable[[Path], None], program: str, tmp_path: Path
) -> None:
    make_old(tmp_path / "out")
    assert run(program.format(ending=KILL), tmp_path).returncode == -signal.SIGKILL
    assert content(tmp_path / "out") == b"old"
    assert len(list(tmp_path.iterdir())) == 2, "the left-over"
    assert run(program.format(ending="pass"), tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@BOTH
def test_a_file_that_cannot_grow_is_one_line(make_old: Callable[[Path], None], program: str, tmp_path: Path) -> None:
    make_old(tmp_path / "out")
    result = run(program.format(ending="pass"), tmp_path, file_bytes=1000)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: out: the file would grow over the system's limit: raise it (ulimit -f)\n"
    assert content(tmp_path / "out") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line_that_names_the_output(tmp_path: Path) -> None:
    fill = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), file.fileno()); file.write(b'more')"
    result = run(FILE_WRITER.format(ending=fill), tmp_path)
    assert result.returncode == 1
    assert result.stderr == "error: out: the disk is full: free some space and run the same command again\n"
    assert list(tmp_path.iterdir()) == []


def test_writers_at_the_same_time_leave_each_other_alone(tmp_path: Path) -> None:
    """The left-over of a living process is not a left-over."""
    with subprocess.Popen(["sleep", "60"]) as other:
        theirs = tmp_path / f".out.partial-{other.pid}"
        theirs.mkdir()
        write_json(tmp_path / "out", {})
        assert theirs.exists()
        other.kill()
        other.wait()
        write_json(tmp_path / "out", {})
        assert not theirs.exists()


def test_a_restarted_container_may_give_the_same_process_number(tmp_path: Path) -> None:
    (tmp_path / f".out.partial-{os.getpid()}").mkdir()
    with write_file(tmp_path / "out") as file:
        file.write(b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, write_folder(tmp_path / "out"):
        (tmp_path / "absent").read_bytes()
    assert caught.value.filename == str(tmp_path / "absent")


def test_json_is_read_back_in_its_order_and_refuses_nan(tmp_path: Path) -> None:
    value = {"b": 1, "a": [0.1, None, "é\n"]}
    write_json(tmp_path / "deep" / "value.json", value)
    assert list(read_json(tmp_path / "deep" / "value.json", "make it").items()) == list(value.items())
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "nan.json", float("nan"))
    assert not (tmp_path / "nan.json").exists()


@pytest.mark.parametrize("damage", [b"", b'{"a": ', b"\xff"])
def test_a_missing_or_damaged_json_comes_with_the_way_out(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "value.json"
    with pytest.raises(ArtifactError, match=r"value.json does not exist: run dvc repro"):
        read_json(path, "run dvc repro")
    path.write_bytes(damage)
    with pytest.raises(ArtifactError, match=r"value.json is damaged \(.*\): run dvc repro"):
        read_json(path, "run dvc repro")
    with pytest.raises(ArtifactError, match=r"value.json/below does not exist: run dvc repro"):
        read_json(path / "below", "run dvc repro")


def test_sha256_is_the_published_one(tmp_path: Path) -> None:
    """The examples of FIPS 180-2: three letters, and a million, which is more than one chunk."""
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"a" * 1_000_000)
    assert sha256_file(path) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(), json_values), st.randoms(use_true_random=False))
def test_a_fingerprint_is_the_values_not_their_order(value: dict[str, object], source: random.Random) -> None:
    items = list(value.items())
    source.shuffle(items)
    assert fingerprint(dict(items)) == fingerprint(value) == fingerprint(json.loads(json.dumps(value)))
    assert fingerprint({**value, "another": 1}) != fingerprint({**value, "another": 2})


def test_the_root_is_dvcs_or_else_the_folder_of_dvc_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert project_root() == tmp_path / "below"
    (tmp_path / "dvc.yaml").touch()
    assert project_root() == tmp_path
    monkeypatch.setenv("DVC_ROOT", "elsewhere")
    assert project_root() == Path("elsewhere")
