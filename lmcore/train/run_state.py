"""The state of one training run in runs/KEY/: lock, checkpoints, metrics line by line, and whether it is complete."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmcore.errors import FULL_DISK, ArtifactError
from lmcore.files import fingerprint, write_json
from lmcore.runtime.locks import lock
from lmcore.runtime.progress import say, warn

FORMAT = 1
KEY_LENGTH = 16
PREVIOUS = ".previous"  # what the name of a run ends in that was complete and is trained again
Record = dict[str, Any]


class Run:
    """What is known of a run. Only one process at a time holds it; `open_run` is the way in.

    | file            | content                                                                             |
    |-----------------|-------------------------------------------------------------------------------------|
    | identity.json   | what the key was made from: parameters and fingerprints                             |
    | checkpoints/    | the last few states                                                                 |
    | metrics.jsonl   | one line per logged step; under `machine` the time (ms since 1970) and the speed    |
    | system.jsonl    | what the machine did meanwhile (lmcore.tracking)                                    |
    | mlflow.json     | the tracker's run and how far both were shipped; so wandb.json; tensorboard/        |
    | summary.json    | seconds, tokens per second, memory, hardware: written last, marks the run complete  |
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics_path = folder / "metrics.jsonl"
        self.records: list[Record] = self._read_records()
        self._on_disk = self.metrics_path.stat().st_size if self.metrics_path.exists() else 0
        self._waiting: list[str] = []  # lines that a full disk has refused
        self._has_warned = False

    @property
    def key(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def log(self, record: Record, **machine: float) -> None:
        """Append a step's metrics and, apart from them, what only this machine at this time explains.

        A step that is logged already is left alone: a resumed run repeats a few, bit for bit. On a full disk the line
        waits in memory for the next `log` or `flush`.
        """
        if self.records and record["step"] <= self.records[-1]["step"]:
            return
        machine["time"] = time.time_ns() // 1_000_000
        self._waiting.append(json.dumps({**record, "machine": machine}) + "\n")
        self.records.append(record)
        self.flush()

    def flush(self) -> bool:
        """Whether all that was logged is on disk by now; if not, the disk is full, which is said once.

        A checkpoint must not know more than the file: without True there should be none.
        """
        try:
            self._append_waiting()
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            if not self._has_warned:
                self._has_warned = True
                reason = os.strerror(error.errno)
                warn(
                    f"{self.metrics_path} cannot grow ({reason}): training goes on, its lines wait in memory and no "
                    f"checkpoint is saved; free some space"
                )
            return False
        self._has_warned = False
        return True

    def complete(self, summary: dict[str, Any]) -> None:
        """Mark the run complete, unless another process has (we waited for it); its outputs lie on disk by now.

        Raises OSError, and the run is not complete, when the disk is full.
        """
        self._append_waiting()
        if not (self.folder / "summary.json").exists():
            write_json(self.folder / "summary.json", summary)

    def _append_waiting(self) -> None:
        """Bring the waiting lines to the disk, all of them or, with an OSError that names the file, none."""
        if not self._waiting:
            return
        content = "".join(self._waiting).encode("utf-8")
        try:
            with self.metrics_path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # a checkpoint that outlives a power cut must not know more than this file
        except OSError as error:
            error.filename = str(self.metrics_path)
            if self.metrics_path.exists():
                os.truncate(self.metrics_path, self._on_disk)
            raise
        self._on_disk += len(content)
        self._waiting.clear()

    def _read_records(self) -> list[Record]:
        """The logged steps; a last line torn by a kill is cut off. Raises ArtifactError when another is damaged."""
        if not self.metrics_path.exists():
            return []
        content = self.metrics_path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.metrics_path, len(whole))
        try:
            records: list[Record] = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise ArtifactError(
                f"{self.metrics_path} is damaged ({error}): remove {self.folder} to start the run afresh"
            ) from None
        return [{key: value for key, value in record.items() if key != "machine"} for record in records]


def run_key(identity: dict[str, Any]) -> str:
    """The name of the run of this `identity`."""
    return fingerprint({"format": FORMAT, **identity})[:KEY_LENGTH]


@contextmanager
def open_run(
    runs: Path, identity: dict[str, Any], begin: Callable[[Path, dict[str, Any]], None] = lambda *_: None
) -> Iterator[Run]:
    """The run that `identity` (parameters, fingerprints) names, locked for this process.

    An incomplete run is taken up where it stopped. A complete one is asked for again on purpose (changed code,
    `dvc repro --force`): it starts afresh and the old state is kept as KEY.previous. But when we waited for another
    process that has just completed it, its result is used. `begin` is called with the folder of one that starts for the
    first time.
    """
    key = run_key(identity)
    folder = runs / key
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / f"{key}.lock").open("w") as file:
        waited = not lock(file)
        if waited:
            say(f"run {key} is being trained by another process: waiting for it")
            lock(file, wait=True)
        previous = runs / f"{key}{PREVIOUS}"
        if (folder / "summary.json").exists() and not waited:
            say(f"run {key} is complete and was asked for again: starting afresh, its state is kept as {previous.name}")
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
        if not (folder / "identity.json").exists():
            folder.mkdir(exist_ok=True)
            if not previous.exists():  # what was asked for again takes over nothing, which other code may have made
                begin(folder, identity)
            write_json(folder / "identity.json", identity)
        yield Run(folder)
