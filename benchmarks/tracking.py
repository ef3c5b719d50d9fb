"""What tracking costs a training with steps of 20 ms: each tracker beside none, in turns.

    python -m benchmarks.tracking --rounds 5

Needs no data. Every turn is the same steps of the same model with the same log, an entry in ten steps; beside it run
the trackers' threads as in a training, with system metrics. A turn is longer than the ten seconds between two batches.
Counted are the steps alone: what a tracker takes to start, mostly imports, and what the end of the training waits for
it, the upload of the model of 4 MB included, are told apart. Of each side the median over its turns is printed, beside
that without a tracker: the time of a turn's steps, and the processor time of all threads, on which other programs have
less influence.
"""

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import torch

from lmcore.model.folder import save_model
from lmcore.model.gpt import GPT, ModelParams
from lmcore.model.loss import LanguageModelLoss
from lmcore.params import read_params, read_section
from lmcore.tracking.run import TrackedRun
from lmcore.tracking.session import track_run
from lmcore.tracking.settings import BackendName, TrackingParams
from lmcore.train.run import open_run

STEP_SECONDS, TURN_SECONDS, LOG_EVERY = 0.02, 15.0, 10
VOCABULARY, CONTEXT = 2048, 32
SIDES: dict[str, tuple[BackendName | None, str]] = {
    "no tracker": (None, ""),
    "MLflow, SQLite": ("mlflow", "mlflow.json"),
    "MLflow, server": ("mlflow", "mlflow.json"),
    "W&B, offline": ("wandb", "wandb.json"),
    "TensorBoard": ("tensorboard", "tensorboard"),
}


@dataclass(frozen=True)
class Turn:
    """Seconds: of the steps, of the processor meanwhile, until the tracker was there, and of its end."""

    steps: float
    processor: float
    start: float
    end: float


def prepare_step(model: GPT) -> Callable[[], float]:
    """A forward, backward and optimizer step of 20 ms, by as many windows as that takes."""
    objective, optimizer = LanguageModelLoss(model), torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(windows: torch.Tensor) -> float:
        loss = objective(windows[:, :-1], windows[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    generator = torch.Generator().manual_seed(1)
    size, seconds = 0, 0.0
    while seconds < STEP_SECONDS:
        size += 1
        windows = torch.randint(VOCABULARY, (size, CONTEXT + 1), generator=generator)
        seconds = statistics.median(time_call(partial(step, windows)) for _ in range(20))
    print(f"a step of {size} windows takes {1e3 * seconds:.1f} ms")
    return partial(step, windows)


def time_call(call: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def take_turn(root: Path, side: str, number: int, step: Callable[[], float]) -> Turn:
    """Run the steps as a training of its own, with the tracker of that side."""
    backend, sign = SIDES[side]
    params = TrackingParams(backends=[backend] if backend else [], experiment="lmcore", system_metrics_seconds=10.0)
    with open_run(root / "runs", {"side": side, "number": number}) as run:
        tracked = TrackedRun(run.folder, {"train": {"seed": number}}, {}, {}, root / "model")
        started = time.perf_counter()
        with track_run(tracked, {}, params) if backend else nullcontext():
            while sign and not (run.folder / sign).exists():
                time.sleep(0.01)
            begun, processor = time.perf_counter(), time.process_time()
            for place in range(1, round(TURN_SECONDS / STEP_SECONDS) + 1):
                loss = step()
                if place % LOG_EVERY == 0:
                    run.log({"step": place, "train_loss": loss, "learning_rate": 1e-4}, tokens_per_second=1.0)
            ended, processor = time.perf_counter(), time.process_time() - processor
        closed = time.perf_counter()
    return Turn(ended - begun, processor, begun - started, closed - ended)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """An MLflow server over a SQLite file of its own, with its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    stores = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/artifacts"]
    command = [sys.executable, "-m", "mlflow", "server", *stores, "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        while server.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{uri}/health"):
                break
            time.sleep(0.1)
        yield uri
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # its workers too
        server.wait()


def main() -> None:
    """Take turns and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the steps")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ |= {"WANDB_MODE": "offline"}
    shape = read_section(ModelParams, "model").model_copy(update={"context_length": CONTEXT})
    assert "tracking" in read_params()
    model = GPT(shape, VOCABULARY, seed=1)
    step = prepare_step(model)
    turns: dict[str, list[Turn]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as uri:
        os.environ["DVC_ROOT"] = folder
        save_model(Path(folder) / "model", model, {})
        for number in range(-1, arguments.rounds):  # the first turns import what the others have
            for side in SIDES:
                os.environ["MLFLOW_TRACKING_URI"] = uri if side == "MLflow, server" else ""
                turn = take_turn(Path(folder), side, number, step)
                if number >= 0:
                    turns[side].append(turn)
    report(turns)


def report(turns: dict[str, list[Turn]]) -> None:
    """Print each side's medians and what they are beside those of none."""
    print(f"{'':16} {'steps':>16} {'processor':>16} {'start':>7} {'end':>7}")
    bare = find_medians(turns["no tracker"])
    for side, taken in turns.items():
        turn = find_medians(taken)
        steps = f"{turn.steps:6.2f} s {turn.steps / bare.steps - 1:+7.2%}"
        processor = f"{turn.processor:6.2f} s {turn.processor / bare.processor - 1:+7.2%}"
        print(f"{side:16} {steps} {processor} {turn.start:5.2f} s {turn.end:5.2f} s")


def find_medians(turns: list[Turn]) -> Turn:
    """The median of each part."""
    parts = zip(*(astuple(turn) for turn in turns), strict=True)
    return Turn(*(statistics.median(part) for part in parts))


if __name__ == "__main__":
    main()
