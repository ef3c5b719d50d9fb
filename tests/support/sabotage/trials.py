"""Trainings to be disturbed: their project folders, their processes, and what must come out of them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from ruamel.yaml import YAML
from tiny import TINY_MODEL, TINY_TRAIN, encode_texts, make_texts, tokenizer_params

from lmcore.hardware.params import HardwareParams
from lmcore.params import read_params
from lmcore.train.params import TrainParams
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

CHECKOUT = Path(__file__).parents[3]
SABOTAGE = CHECKOUT / "tests" / "support" / "sabotage"
PATIENCE = 300.0  # seconds after which a training hangs

# With masks from the first step on: what a state holds and a step draws for them is killed and gone on with as well.
DIFFUSION = TINY_MODEL.diffusion.model_copy(update={"block_size": 2, "start_fraction": 0.0})
MODEL = TINY_MODEL.model_copy(update={"dropout": 0.1, "diffusion": DIFFUSION})
# All that a state can hold, and in 12 steps some of everything: checkpoints after 3, 6 (the trunk's end), 9 and 12,
# validations after 4, 8 and 12.
TRAIN = TINY_TRAIN.model_copy(update={"optimizer": "muon", "schedule": "wsd", "ema_decay": 0.9})
# A row of params.yaml's profiles, with a micro-batch that does not divide the batch.
PROFILE = {**read_params(CHECKOUT / "params.yaml")["profiles"]["cpu"], "micro_batch_size": 3, "compile": False}


class Project:
    """A folder with tokens, their tokenizer and parameters, in which trainings run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path) -> "Project":
        splits = {"train": [make_texts(40, 1)], "validation": [make_texts(8, 2)]}
        tokenizer = train_tokenizer(tokenizer_params("byte"), splits["train"])
        (folder / "models" / "tokenizer").mkdir(parents=True)
        tokenizer.save(folder / "models" / "tokenizer")
        encode_texts(1000, splits, tokenizer, folder / "data" / "tokens")
        (folder / "dvc.yaml").touch()
        project = cls(folder)
        project.write_params(TRAIN)
        return project

    def copy(self, folder: Path) -> "Project":
        shutil.copytree(self.folder, folder)
        return Project(folder)

    def write_params(self, train: TrainParams) -> None:
        sections = {
            "model": MODEL.model_dump(),
            "train": train.model_dump(),
            "hardware": {
                **dict.fromkeys(HardwareParams.model_fields),
                "profile": "cpu",
                "workers": "auto",
                "data_engine": "local",
            },
            "profiles": {"cpu": PROFILE},
            "tracking": {"backends": ["mlflow"], "experiment": "lmcore", "system_metrics_seconds": None},
        }
        YAML().dump(sections, self.folder / "params.yaml")

    def find_run(self, train: TrainParams = TRAIN) -> Path:
        """The folder of the run with these parameters, not of one that it replaced."""
        (found,) = self._find_runs(train)
        return found

    def is_complete(self) -> bool:
        return any((run / "summary.json").exists() for run in self._find_runs(TRAIN))

    def find_seals(self) -> list[Path]:
        """Of its checkpoints, the newest last."""
        return sorted(self.find_run().glob("checkpoints/step-*.json"))

    def read_log(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl without what only the machine explains."""
        records = [json.loads(line) for line in (self.find_run() / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in record.items() if key != "machine"} for record in records]

    def read_outcome(self) -> dict[str, bytes]:
        """All that must not depend on kills, by name: outputs, and what else lies there; state; identity; log."""
        assert self.is_complete()
        outputs = [path for name in ("models", "reports") for path in (self.folder / name).rglob("*")]
        seal = self.find_seals()[-1]
        contents = {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else b""
            for path in [*outputs, seal, seal.with_suffix(".safetensors"), self.find_run() / "identity.json"]
        }
        return {**contents, "metrics.jsonl": json.dumps(self.read_log()).encode()}

    def compare(self, whole: dict[str, bytes]) -> list[str]:
        """The names in the outcome that are not as in `whole`."""
        mine = self.read_outcome()
        return sorted(name for name in mine.keys() | whole.keys() if mine.get(name) != whole.get(name))

    def _find_runs(self, train: TrainParams) -> list[Path]:
        return [
            path.parent
            for path in self.folder.glob("runs/*/identity.json")
            if json.loads(path.read_text())["train"] == train.model_dump() and not path.parent.suffix
        ]


class Training:
    """A process that trains."""

    def __init__(self, port: int, project: Project, arranged: str) -> None:
        self.output_path = project.folder / f"output-{time.monotonic_ns()}.txt"
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        request = {"folder": str(project.folder), "output": str(self.output_path), "arranged": arranged}
        self.connection.sendall(f"{json.dumps(request)}\n".encode())
        self.received = b""
        self.status: int | None = None
        self.id = int(self._read_line())

    @property
    def output(self) -> str:
        return self.output_path.read_text() if self.output_path.exists() else ""

    @property
    def operations(self) -> list[str]:
        """What SHOW has shown."""
        return [line for line in self.output.splitlines() if line.startswith("sabotage: SHOW ")]

    def wait(self) -> int:
        """For its end; the exit status."""
        if self.status is None:
            line = self._read_line()
            assert line != "stopped", f"it stands still:\n{self.output}"
            self.status = int(line)
        return self.status

    def wait_until_stopped(self) -> None:
        line = self._read_line()
        assert line == "stopped", f"it left with {line}:\n{self.output}"

    def wait_until_it_says(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.output:
            assert not self.ends_within(0.02), f"it left with {self.status}:\n{self.output}"
            assert time.monotonic() < deadline, f"it has not said {text!r}:\n{self.output}"

    def ends_within(self, seconds: float) -> bool:
        self.connection.settimeout(max(seconds, 0.001))
        try:
            self.wait()
        except TimeoutError:
            return False
        finally:
            self.connection.settimeout(PATIENCE)
        return True

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has just ended, and `wait` says how
            os.kill(self.id, number)

    def close(self) -> None:
        with self.connection:
            if self.status is None:
                self.send(signal.SIGKILL)

    def _read_line(self) -> str:
        while b"\n" not in self.received:
            content = self.connection.recv(4096)
            assert content, f"the nursery has lost it:\n{self.output}"
            self.received += content
        line, _, self.received = self.received.partition(b"\n")
        return line.decode()


class Nursery:
    """Starts trainings; see nursery.py."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.trainings: list[Training] = []

    def start(self, project: Project, arranged: str = "") -> Training:
        """`arranged`: how it is to be sabotaged, see hook.py."""
        self.trainings.append(Training(self.port, project, arranged))
        return self.trainings[-1]

    def run(self, project: Project, arranged: str = "") -> Training:
        """A training that is over."""
        training = self.start(project, arranged)
        training.wait()
        return training

    def close(self) -> None:
        for training in self.trainings:
            training.close()


def make_environment(**more: str) -> dict[str, str]:
    """In which processes can be sabotaged."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "GIT_"))}
    return {**mine, "PYTHONPATH": f"{SABOTAGE}{os.pathsep}{CHECKOUT}", "OMP_NUM_THREADS": "1", **more}


@contextmanager
def open_nursery(practice: Project) -> Iterator[Nursery]:
    """While the block runs; it has trained once in `practice` before."""
    log_path = practice.folder / "nursery.txt"
    command = [sys.executable, str(SABOTAGE / "nursery.py"), str(practice.folder)]
    environment, pipe = make_environment(), subprocess.PIPE
    with (
        log_path.open("w") as log,
        # Its trainings stand still, which a session of their own keeps from all else, see projects.py.
        subprocess.Popen(
            command, env=environment, stdout=pipe, stderr=log, text=True, start_new_session=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            port = process.stdout.readline()
            assert port, log_path.read_text()
            with closing(Nursery(int(port))) as nursery:
                yield nursery
        finally:
            process.kill()
