"""What the training loop costs beside the bare forward, backward and optimizer step of the same model and batches.

    python -m benchmarks.train_step --segments 5

Run it after `dvc repro encode`, on an otherwise idle machine. All sides alternate in one process: the bare step; the
loop with loader, logging and the checkpoint at its end; and the loop with MLflow, or with four checkpoints more. The
first segment also makes MLflow's database, which a project does once: its row is printed, and the median leaves it
behind.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmcore.distributed import World
from lmcore.hardware import Hardware, HardwareParams
from lmcore.model.gpt import GPT, ModelParams
from lmcore.params import read_params, read_section
from lmcore.progress import TrainingProgress
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokens.batches import Batches
from lmcore.tokens.dataset import open_dataset
from lmcore.tracking import TrackedRun, track_run
from lmcore.train.checkpoint import Checkpoints
from lmcore.train.interrupt import Interrupt
from lmcore.train.loop import train
from lmcore.train.run import open_run
from lmcore.train.schedule import Schedule
from lmcore.train.session import build_state, plan_hardware
from lmcore.train.settings import TrainParams
from lmcore.train.state import TrainState

LOOPS: dict[str, dict[str, Any]] = {
    "loop": {"tracked": False, "saves": 1},
    "with MLflow": {"tracked": True, "saves": 1},
    "with 4 more checkpoints": {"tracked": False, "saves": 5},
}


@dataclass(frozen=True)
class NoLoss:
    """A validation that takes no time: it is work that a user asks for, not a cost of the loop."""

    loss: float = 0.0
    bits_per_byte: float = 0.0


@dataclass
class Setup:
    """The default run, as params.yaml has it."""

    params: TrainParams
    hardware: Hardware
    batches: Batches
    state: TrainState


def prepare() -> Setup:
    """Everything up to the first step."""
    params, model_params = read_section(TrainParams, "train"), read_section(ModelParams, "model")
    dataset = open_dataset(Path("data/tokens"), load_tokenizer(Path("models/tokenizer")))
    hardware = plan_hardware(read_section(HardwareParams, "hardware"), read_params(), params, model_params, dataset)
    batches = Batches(dataset.train, params.batch_size, model_params.context_length, params.seed)
    model = GPT(model_params, dataset.train.vocab_size, params.seed)
    return Setup(params, hardware, batches, build_state(model, params, hardware, World()))


def run_bare(setup: Setup, steps: int) -> None:
    """The same mathematics on one batch that lies ready, with nothing else."""
    windows = torch.from_numpy(setup.batches.at(0)).to(setup.hardware.device)
    state = setup.state
    for _ in range(steps):
        with setup.hardware.autocast():
            loss = state.objective(windows[:, :-1], windows[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(state.model.parameters(), setup.params.grad_clip or float("inf"))
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


@contextmanager
def temporary_project() -> Iterator[Path]:
    """A folder that takes the run's state and the tracker's database."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DVC_ROOT"] = folder
        yield Path(folder)


def run_loop(setup: Setup, steps: int, root: Path, *, tracked: bool, saves: int) -> float:
    """Seconds of `steps` steps of the real loop, with logging, MLflow if `tracked`, and so many checkpoints."""
    params = setup.params.model_copy(
        update={"max_steps": steps, "warmup_steps": 0, "checkpoint_every_steps": steps // saves}
    )
    number = len(list(root.glob("runs/*")))
    with open_run(root / "runs", {"segment": number}) as run:
        (artifact := root / "model").mkdir(exist_ok=True)
        described = TrackedRun(run.folder, {}, setup.hardware.describe(), {}, artifact)
        with (
            track_run(described, {}) if tracked else nullcontext(),
            TrainingProgress(0, steps, setup.batches.tokens_per_step) as progress,
            Checkpoints(run.folder / "checkpoints", params.keep_checkpoints) as checkpoints,
        ):
            started = time.perf_counter()
            train(
                setup.state,
                setup.batches,
                Schedule(params, steps),
                params,
                setup.hardware,
                World(),
                step=0,
                validate=lambda _: NoLoss(),
                run=run,
                checkpoints=checkpoints,
                progress=progress,
                interrupt=Interrupt(),
            )
            checkpoints.finish()
            return time.perf_counter() - started


def main() -> None:
    """Alternate all sides and print the ratios of their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of one segment; by default from one checkpoint to the next")
    arguments = parser.parse_args()
    setup = prepare()
    steps = arguments.steps or setup.params.checkpoint_every_steps or 100
    seconds: dict[str, list[float]] = {"bare": [], **{name: [] for name in LOOPS}}
    run_bare(setup, 3)
    with temporary_project() as root:
        for number in range(arguments.segments):
            started = time.perf_counter()
            run_bare(setup, steps)
            seconds["bare"].append(time.perf_counter() - started)
            with Path(os.devnull).open("w") as silence, redirect_stdout(silence):
                for name, parts in LOOPS.items():
                    seconds[name].append(run_loop(setup, steps, root, **parts))
            times = ", ".join(f"{name} {1e3 * taken[-1] / steps:.1f} ms" for name, taken in seconds.items())
            print(f"segment {number + 1}, a step: {times}", flush=True)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    for name, other in (("loop", "bare"), ("with MLflow", "loop"), ("with 4 more checkpoints", "loop")):
        print(f"{name} takes {medians[name] / medians[other]:.3f} times as long as {other} (medians)")


if __name__ == "__main__":
    main()
