"""Weights & Biases with its real library, offline: its own files are read back."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracked import BEGIN, SETTINGS, log, make_params, make_run

from lmcore.tracking.session import track_run

WANDB = make_params("wandb")
BLOCK = 32768

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("wandb")]


@pytest.fixture(autouse=True)
def offline(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    wandb = pytest.importorskip("wandb")  # takes seconds
    monkeypatch.setenv("WANDB_MODE", "offline")
    for place in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{place}_DIR", str(project / place))
    yield
    wandb.teardown()


def read_records(path: Path) -> Iterator[object]:
    """The records of a .wandb file: LevelDB's log format after a header of seven bytes, protocol buffers in it."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def read_rows(path: Path) -> list[dict[str, float]]:
    rows = [record.history for record in read_records(path) if record.WhichOneof("record_type") == "history"]
    return [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in row.item} for row in rows]


@pytest.mark.slow
def test_a_resumed_training_is_the_same_run(project: Path) -> None:
    run = make_run(project)
    with pytest.raises(SystemExit), track_run(run, SETTINGS, WANDB):
        log(run, 1, 2)
        raise SystemExit(143)
    run_id = json.loads((run.folder / "wandb.json").read_text())["run_id"]
    with track_run(run, SETTINGS, WANDB):
        log(run, 3)
    assert json.loads((run.folder / "wandb.json").read_text())["run_id"] == run_id
    pytest.importorskip("wandb").teardown()  # W&B's own process, which writes the files, has ended
    files = sorted(run.folder.glob(f"wandb/offline-run-*-{run_id}*/run-{run_id}.wandb"))
    rows = [row for file in files for row in read_rows(file)]
    assert [(row["_step"], row["train_loss"], row["_timestamp"]) for row in rows] == [
        (step, 1.0 / step, (BEGIN + step) / 1000) for step in (1, 2, 3)
    ]
    (description,) = [record.run for record in read_records(files[0]) if record.WhichOneof("record_type") == "run"]
    assert (description.run_id, description.project, description.display_name) == (run_id, "lmcore", run.folder.name)
    config = {item.key: json.loads(item.value_json) for item in description.config.update}
    assert config["train.learning_rate"] == 0.001
    assert config["run_key"] == run.folder.name
    records = [record for file in files for record in read_records(file)]
    exits = [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"]
    assert exits == [1, 0]
    assert not (project / "mlflow.db").exists()


def test_without_a_key_nothing_is_asked(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(project / "netrc"))
    run = make_run(project)
    with track_run(run, SETTINGS, WANDB):
        log(run, 1)
    last = capsys.readouterr().err.splitlines()[-1]
    assert "W&B lacks a part of this run (no API key: run `wandb login`, or set WANDB_MODE=offline)" in last


def test_a_server_that_is_not_there(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr("lmcore.tracking.wandb_backend.CONNECT_SECONDS", 1.0)
    run = make_run(project)
    with track_run(run, SETTINGS, WANDB):
        log(run, 1)
    assert "W&B lacks a part of this run (Connection refused)" in capsys.readouterr().err.splitlines()[-1]
