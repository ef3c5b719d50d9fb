"""What tests/test_distributed.py runs in two processes: python -m world_program, and in BEHAVIOUR what they do."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lmcore.distributed import World, join_world, launch, split_batch
from lmcore.errors import DataError, report_errors
from lmcore.train.interrupt import catch_signals, follow_parent

STEPS = 1_000_000  # of an endless training: the test ends it


def meet(world: World) -> None:
    total = world.sum(torch.tensor([1.0, world.rank])).tolist()
    said = [world.any(False), world.any(world.rank == 1), world.any(True)]
    world.barrier()
    chosen = world.from_main(7 + world.rank)
    part = split_batch(6, world)
    line = f"{world.rank} of {world.size} ({world.local_rank}): {total} {said} {chosen} {part.start}:{part.stop}"
    Path(f"met-{world.rank}").write_text(line)


def make_a_mistake(world: World) -> None:
    for step in range(STEPS):
        if step == 3 and world.rank == 1:
            raise DataError("the text is empty: give it some")
        world.barrier()


def make_one_mistake_together(world: World) -> None:
    world.barrier()
    raise DataError("the text is empty: give it some")


def be_killed(world: World) -> None:
    for step in range(STEPS):
        if step == 3 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        world.sum(torch.ones(1000))


def be_killed_together(world: World) -> None:
    world.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def leave_when_asked(world: World) -> None:
    """The order of a training loop: agree, save, leave. The main process takes its time."""
    with catch_signals() as interrupt:
        for step in range(STEPS):
            if step == 3:
                print(os.getpid(), flush=True)
            if world.any(interrupt.signal is not None):
                time.sleep(0.5 if world.is_main else 0.0)
                Path(f"saved-{world.rank}").touch()
                raise SystemExit(128 + (interrupt.signal or signal.SIGTERM))


def ignore_everything(_: World) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(os.getpid(), flush=True)
    time.sleep(600)


BEHAVIOURS: dict[str, Callable[[World], None]] = {
    behaviour.__name__: behaviour
    for behaviour in (
        meet,
        make_a_mistake,
        make_one_mistake_together,
        be_killed,
        be_killed_together,
        leave_when_asked,
        ignore_everything,
    )
}


def main() -> None:
    follow_parent()
    launch(2, "world_program")
    with join_world("cpu") as world:
        BEHAVIOURS[os.environ["BEHAVIOUR"]](world)


if __name__ == "__main__":
    with report_errors():
        main()
