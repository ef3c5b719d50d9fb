"""The state of one training run in runs/KEY/: lock, checkpoints, metrics line by line, and whether it is complete."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmcore.files import fingerprint, write_json
from lmcore.progress import say

FORMAT = 1
KEY_LENGTH = 16
Record = dict[str, Any]


class Run:
    """What is known of a run. Only one process at a time holds it; `open_run` is the way in.

    | file            | content                                                                             |
    |-----------------|-------------------------------------------------------------------------------------|
    | identity.json   | what the key was made from: parameters and fingerprints                             |
    | checkpoints/    | the last few states                                                                 |
    | metrics.jsonl   | one line per logged step; under `machine` the time (ms since 1970) and the speed    |
    | mlflow.json     | the tracker's run and how far metrics.jsonl was shipped                             |
    | summary.json    | seconds, tokens per second, memory, hardware: written last, marks the run complete  |
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics_path = folder / "metrics.jsonl"
        self.records: list[Record] = self._read_records()

    @property
    def key(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def log(self, record: Record, **machine: float) -> None:
        """Append a step's metrics and, apart from them, what only this machine at this time explains.

        A step that the file has already is left alone: a resumed run repeats a few, bit for bit.
        """
        if self.records and record["step"] <= self.records[-1]["step"]:
            return
        machine["time"] = time.time_ns() // 1_000_000
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**record, "machine": machine}) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that outlives a power cut must not know more than this file
        self.records.append(record)

    def complete(self, summary: dict[str, Any]) -> None:
        """Mark the run complete, unless another process has (we waited for it); its outputs lie on disk by now."""
        if not (self.folder / "summary.json").exists():
            write_json(self.folder / "summary.json", summary)

    def _read_records(self) -> list[Record]:
        """The logged steps; a last line torn by a kill is cut off."""
        if not self.metrics_path.exists():
            return []
        content = self.metrics_path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.metrics_path, len(whole))
        records: list[Record] = [json.loads(line) for line in whole.splitlines()]
        return [{key: value for key, value in record.items() if key != "machine"} for record in records]


@contextmanager
def open_run(runs: Path, identity: dict[str, Any]) -> Iterator[Run]:
    """The run that `identity` (parameters, fingerprints) names, locked for this process.

    An incomplete run is taken up where it stopped. A complete one is asked for again on purpose (changed code,
    `dvc repro --force`): it starts afresh and the old state is kept as KEY.previous. But when we waited for another
    process that has just completed it, its result is used.
    """
    key = fingerprint({"format": FORMAT, **identity})[:KEY_LENGTH]
    folder = runs / key
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / f"{key}.lock").open("w") as lock:
        waited = _acquire(lock.fileno(), key)
        if (folder / "summary.json").exists() and not waited:
            say(f"run {key} is complete and was asked for again: starting afresh, its state is kept as {key}.previous")
            shutil.rmtree(runs / f"{key}.previous", ignore_errors=True)
            folder.rename(runs / f"{key}.previous")
        folder.mkdir(exist_ok=True)
        write_json(folder / "identity.json", identity)
        yield Run(folder)


def _acquire(descriptor: int, key: str) -> bool:
    """Take the lock; True if another process held it and we waited. The system frees it when its holder dies."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"run {key} is being trained by another process: waiting for it")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    return False
