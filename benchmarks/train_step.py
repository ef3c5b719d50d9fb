"""Time that the training loop, its checkpoints and its tracking add to the bare training step.

    python -m benchmarks.train_step --rounds 60

Run it after `dvc repro encode`, on an otherwise idle machine. Model and batches are those of the default run. The sides
alternate in one process, twenty steps at a time: the bare forward, backward and optimizer step; the loop with loader
and one log entry; the same with four checkpoints. Counted are the steps between the first and the last, whose end is
told apart. MLflow has a thread of its own that sends a batch every ten seconds: counted is its processor time, as if
training stood still for it. The shares are those of the default run, with each part as often as that has it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lmcore.hardware.distributed import World
from lmcore.hardware.params import HardwareParams
from lmcore.hardware.resolve import Hardware, claim_device
from lmcore.hardware.signals import Interrupt
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.params import read_params
from lmcore.runtime.progress import TrainingProgress
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokens.batches import Batches
from lmcore.tokens.dataset import open_dataset
from lmcore.tracking.description import TrackedRun
from lmcore.tracking.params import TrackingParams
from lmcore.tracking.session import track_run
from lmcore.tracking.shipper import SHIP_SECONDS
from lmcore.train.checkpoint import Checkpoints
from lmcore.train.loop import Observers, train
from lmcore.train.params import TrainParams
from lmcore.train.plan import RunContext, plan_run
from lmcore.train.run_state import open_run
from lmcore.train.schedule import Schedule
from lmcore.train.state import TrainState
from lmcore.train.trainer import build_state

STEPS, SAVES = 20, 4  # of one turn


@dataclass(frozen=True)
class NoLoss:
    """A validation that takes no time: it is work that a user asks for, not a cost of the loop."""

    loss: float = 0.0
    bits_per_byte: float = 0.0
    mask_losses: tuple[float, ...] = ()


@dataclass
class Setup:
    """The default run."""

    params: TrainParams
    hardware: Hardware
    batches: Batches
    state: TrainState
    steps: int


def prepare(tokens: Path, tokenizer: Path, *, eager: bool) -> Setup:
    """Build everything up to the first step."""
    params, model_params = TrainParams(), ModelParams()
    request, settings = HardwareParams(compile=False if eager else None), read_params()
    claim_device(request, settings)
    dataset = open_dataset(tokens, load_tokenizer(tokenizer))
    batches = Batches(dataset.train, params.batch_size, model_params.context_length, params.seed)
    context = plan_run(request, settings, params, model_params, batches, World())
    model = GPT(model_params, dataset.train.vocab_size, params.seed, end_of_text=dataset.train.end_of_text)
    state = build_state(model, params, context.hardware, World())
    return Setup(params, context.hardware, batches, state, context.schedule.steps)


class Stopwatch(TrainingProgress):
    """When each step of the loop ended, with all that belongs to it."""

    def __init__(self, tokens_per_step: int) -> None:
        super().__init__(0, STEPS, tokens_per_step)
        self.ends: list[float] = []

    def resume(self) -> None:
        """The step is over."""
        super().resume()
        self.ends.append(time.perf_counter())


def run_bare(setup: Setup) -> float:
    """Seconds of the same mathematics on one batch that lies ready, with nothing else; as many steps as are counted."""
    windows = torch.from_numpy(setup.batches.at(0)).to(setup.hardware.device)
    state = setup.state
    started = time.perf_counter()
    for _ in range(STEPS - 2):
        with setup.hardware.autocast():
            loss = state.objective(windows[:, :-1], windows[:, 1:]).total
        loss.backward()
        nn.utils.clip_grad_norm_(state.model.parameters(), setup.params.grad_clip or float("inf"))
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - started


@contextmanager
def temporary_project() -> Iterator[Path]:
    """A folder that takes the run's state and the tracker's database."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DVC_ROOT"] = folder
        yield Path(folder)


def run_loop(setup: Setup, root: Path, *, saving: bool) -> tuple[float, float]:
    """Seconds of the counted steps of the real loop; and of the run's start, last step and end."""
    every = STEPS // (SAVES + 1) if saving else None
    params = setup.params.model_copy(update={"max_steps": STEPS, "warmup_steps": 0, "checkpoint_every_steps": every})
    started = time.perf_counter()
    with (
        open_run(root / "runs", {"turn": len(list(root.glob("runs/*")))}) as run,
        Stopwatch(setup.batches.tokens_per_step) as stopwatch,
        Checkpoints(run.folder / "checkpoints", params.keep_checkpoints) as checkpoints,
    ):
        context = RunContext(Schedule(params, STEPS), setup.hardware, World())
        observers = Observers(run, checkpoints, stopwatch, Interrupt())
        train(setup.state, setup.batches, context, observers, validate=lambda *_, **__: NoLoss(), step=0)
    seconds = stopwatch.ends[-2] - stopwatch.ends[0]
    return seconds, time.perf_counter() - started - seconds


def run_tracker(setup: Setup, root: Path, number: int, entries: int) -> float:
    """Processor seconds of MLflow for a run with so many log entries, in one batch."""
    (folder := root / f"tracked-{number}-{entries}").mkdir()
    (artifact := root / "model").mkdir(exist_ok=True)
    entry = {"train_loss": 1.0, "learning_rate": 1e-3, "gradient_norm": 1.0}
    machine = {"tokens_per_second": 1.0, "peak_memory_bytes": 1, "time": 1}
    lines = [json.dumps({"step": step, "tokens": step, **entry, "machine": machine}) for step in range(entries)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    started = time.process_time()
    params = TrackingParams(backends=["mlflow"], experiment="lmcore", system_metrics_seconds=None)
    with track_run(TrackedRun(folder, {}, setup.hardware.describe(), {}, artifact), {}, params):
        pass
    return time.process_time() - started


def main(argv: Sequence[str] | None = None) -> None:
    """Take turns, and weight each cost by its frequency in the default run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--tracker-rounds", type=int, default=10)
    parser.add_argument("--eager", action="store_true", help="not compiled")
    parser.add_argument("--tokens", type=Path, default=Path("data/tokens"))
    parser.add_argument("--tokenizer", type=Path, default=Path("models/tokenizer"))
    options = parser.parse_args(argv)
    setup = prepare(options.tokens, options.tokenizer, eager=options.eager)
    times: dict[str, list[float]] = {name: [] for name in ("bare", "loop", "end", "saving", "tracker", "batch")}
    run_bare(setup)
    with temporary_project() as root, Path(os.devnull).open("w") as silence, redirect_stdout(silence):
        for _ in range(options.rounds):
            times["bare"].append(run_bare(setup))
            loop, end = run_loop(setup, root, saving=False)
            times["loop"].append(loop)
            times["end"].append(end)
            saving, _ = run_loop(setup, root, saving=True)
            times["saving"].append(saving)
        step = statistics.median(times["bare"]) / (STEPS - 2)
        entries = round(SHIP_SECONDS / step / setup.params.log_every)
        for number in range(options.tracker_rounds):
            tracker = run_tracker(setup, root, number, 0)
            times["tracker"].append(tracker)
            times["batch"].append(run_tracker(setup, root, number, entries) - tracker)
    report(setup, {name: statistics.median(taken) for name, taken in times.items()})


def report(setup: Setup, times: dict[str, float]) -> None:
    """Print what each part takes (`times` in seconds), and what share of the default run's bare steps that is."""
    step = times["bare"] / (STEPS - 2)
    checkpoint = (times["saving"] - times["loop"]) / SAVES
    every = setup.params.checkpoint_every_steps or setup.steps
    print(f"a bare step {1e3 * step:.1f} ms, {setup.steps} of them {step * setup.steps:.0f} s")
    rows = {
        "the loop, its loader and log": times["loop"] / times["bare"] - 1,
        f"checkpoints of {1e3 * checkpoint:.0f} ms, one in {every} steps": checkpoint / every / step,
        f"start, last step and end, {times['end']:.2f} s": times["end"] / setup.steps / step,
        f"MLflow's start and end, {times['tracker']:.2f} s": times["tracker"] / setup.steps / step,
        f"MLflow's batches of {1e3 * times['batch']:.0f} ms, one in {SHIP_SECONDS:.0f} s": times["batch"]
        / SHIP_SECONDS,
    }
    for name, share in rows.items():
        print(f"{share:+7.2%}  {name}")


if __name__ == "__main__":
    main()
