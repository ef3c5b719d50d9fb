"""Time that each experiment tracker adds to a training with steps of 20 ms.

    python -m benchmarks.tracking --rounds 5

Needs no data. Every turn is the same steps of the same model with the same log, an entry in ten steps; beside it run
the trackers' threads as in a training, with system metrics. A turn is longer than the ten seconds between two batches.
Counted are the steps alone: what a tracker takes to start, mostly imports, and what the end of the training waits for
it, the upload of the model of 4 MB included, are told apart. Of each side the medians over its turns are printed: the
median step and the mean one, beside those without a tracker; and the processor time of the tracker's threads and
processes as a share of that of the bare steps, as if training stood still for it. On a busy machine the last is the one
to look at.
"""

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import psutil
import torch

from benchmarks.timing import measure_seconds
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.model.save_load import save_model
from lmcore.tracking.description import TrackedRun
from lmcore.tracking.params import BackendName, TrackingParams
from lmcore.tracking.session import track_run
from lmcore.train.loss import LanguageModelLoss
from lmcore.train.run_state import open_run

STEP_SECONDS, LOG_EVERY = 0.02, 10
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
    """Seconds: of the median and the mean step; of the processor in a step and for the tracker; of start and end."""

    median: float
    mean: float
    processor: float
    tracker: float
    start: float
    end: float


def prepare_step(model: GPT) -> Callable[[], float]:
    """A forward, backward and optimizer step of 20 ms, by as many windows as that takes."""
    objective, optimizer = LanguageModelLoss(model), torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(windows: torch.Tensor) -> float:
        loss = objective(windows[:, :-1], windows[:, 1:]).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    generator = torch.Generator().manual_seed(1)
    size, seconds = 0, 0.0
    while seconds < STEP_SECONDS:
        size += 1
        windows = torch.randint(VOCABULARY, (size, CONTEXT + 1), generator=generator)
        seconds = statistics.median(measure_seconds(partial(step, windows)) for _ in range(20))
    print(f"a step of {size} windows takes {1e3 * seconds:.1f} ms")
    return partial(step, windows)


def take_turn(root: Path, side: str, number: int, step: Callable[[], float], count: int) -> Turn:
    """Run `count` steps as a training of its own, with the tracker of that side."""
    backend, sign = SIDES[side]
    params = TrackingParams(backends=[backend] if backend else [], experiment="lmcore", system_metrics_seconds=10.0)
    with open_run(root / "runs", {"side": side, "number": number}) as run:
        tracked = TrackedRun(run.folder, {"train": {"seed": number}}, {}, {}, root / "model")
        started = time.perf_counter()
        with track_run(tracked, {}, params) if backend else nullcontext():
            while sign and not (run.folder / sign).exists():
                time.sleep(0.01)
            steps, begun, processor, tracker = [], time.perf_counter(), time.thread_time(), measure_tracker()
            for place in range(1, count + 1):
                step_begun = time.perf_counter()
                loss = step()
                if place % LOG_EVERY == 0:
                    run.log({"step": place, "train_loss": loss, "learning_rate": 1e-4}, tokens_per_second=1.0)
                steps.append(time.perf_counter() - step_begun)
            ended, processor, tracker = time.perf_counter(), time.thread_time() - processor, measure_tracker() - tracker
        closed = time.perf_counter()
    return Turn(
        statistics.median(steps), sum(steps) / count, processor / count, tracker, begun - started, closed - ended
    )


def measure_tracker() -> float:
    """Processor seconds so far of Python's threads beside this one, and of W&B's own process."""
    own = {thread.native_id for thread in threading.enumerate() if thread is not threading.main_thread()}
    process = psutil.Process()
    seconds = sum(thread.user_time + thread.system_time for thread in process.threads() if thread.id in own)
    for child in process.children():
        if child.name().startswith("wandb"):
            times = child.cpu_times()
            seconds += times.user + times.system
    return seconds


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


def main(argv: Sequence[str] | None = None) -> None:
    """Take turns and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="of a turn")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="beside no tracker")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the steps")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    os.environ |= {"WANDB_MODE": "offline"}
    model = GPT(ModelParams(context_length=CONTEXT), VOCABULARY, seed=1)
    step = prepare_step(model)
    names = list(dict.fromkeys(["no tracker", *arguments.sides]))
    turns: dict[str, list[Turn]] = {side: [] for side in names}
    count = round(arguments.seconds / STEP_SECONDS)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        uri = stack.enter_context(serve(Path(folder))) if "MLflow, server" in names else ""
        os.environ["DVC_ROOT"] = folder
        save_model(Path(folder) / "model", model, {})
        for number in range(-1, arguments.rounds):  # the first turns import what the others have
            sides = deque(names)
            sides.rotate(number)
            for side in sides:
                os.environ["MLFLOW_TRACKING_URI"] = uri if side == "MLflow, server" else ""
                turn = take_turn(Path(folder), side, number, step, count)
                if number >= 0:
                    turns[side].append(turn)
    report(turns, count)


def report(turns: dict[str, list[Turn]], count: int) -> None:
    """Print each side's medians and their ratios to those without a tracker; a turn has `count` steps."""
    print(f"{'':16} {'median step':>17} {'mean step':>17} {'tracker':>8} {'start':>7} {'end':>7}")
    bare = find_medians(turns["no tracker"])
    for side, taken in turns.items():
        turn = find_medians(taken)
        median = f"{1e3 * turn.median:6.2f} ms {turn.median / bare.median - 1:+7.2%}"
        mean = f"{1e3 * turn.mean:6.2f} ms {turn.mean / bare.mean - 1:+7.2%}"
        tracker = f"{turn.tracker / count / bare.processor:8.2%}"
        print(f"{side:16} {median} {mean} {tracker} {turn.start:5.2f} s {turn.end:5.2f} s")


def find_medians(turns: list[Turn]) -> Turn:
    """The median of each part."""
    parts = zip(*(astuple(turn) for turn in turns), strict=True)
    return Turn(*(statistics.median(part) for part in parts))


if __name__ == "__main__":
    main()
