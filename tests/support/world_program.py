"""Program of tests/hardware/test_distributed.py, run by two processes; BEHAVIOUR says what they do."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lmcore.errors import DataError, report_errors
from lmcore.hardware.distributed import World, follow_parent, join_world, launch, split_batch

STEPS = 1_000_000  # of an endless training: the test ends it


def tell_pid() -> None:
    """In one piece: torchrun's workers are unbuffered, and print writes the end of a line apart."""
    os.write(sys.stdout.fileno(), f"{os.getpid()}\n".encode())


def meet(world: World) -> None:
    total = world.all_reduce(torch.tensor([1.0, world.rank])).tolist()
    said = [world.any(False), world.any(world.rank == 1), world.any(True), world.max(4 * world.rank)]
    world.barrier()
    chosen = world.broadcast({"step": 7, "from": "é" * (1 + world.rank)})
    part = split_batch(6, world)
    line = f"{world.rank} of {world.size} ({world.local_rank}): {total} {said} {chosen} {part.start}:{part.stop}"
    Path(f"met-{world.rank}").write_text(line)


def make_a_mistake(world: World) -> None:
    for step in range(STEPS):
        if step == 3 and world.rank == 1:
            raise DataError("the text is empty: give it some")
        world.barrier()


def make_a_mistake_on_the_way(world: World) -> None:
    """With a sum under way that the other one never joins."""
    world.barrier()
    if world.rank == 0:
        time.sleep(100)
    torch.distributed.all_reduce(torch.ones(10), async_op=True)
    raise DataError("the text is empty: give it some")


def make_one_mistake_together(world: World) -> None:
    world.barrier()
    raise DataError("the text is empty: give it some")


def be_killed(world: World) -> None:
    for step in range(STEPS):
        if step == 3 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        world.all_reduce(torch.ones(1000))


def be_killed_beside_a_busy_one(world: World) -> None:
    world.barrier()
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(100)


def leave_when_asked(world: World) -> None:
    """The order of a training loop: agree, save, leave. The main process takes its time."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    for step in range(STEPS):
        if step == 3:
            tell_pid()
        if number := world.max(asked[0] if asked else 0):
            time.sleep(0.5 if world.is_main else 0.0)
            Path(f"saved-{world.rank}").touch()
            raise SystemExit(128 + number)


def ignore_everything(_: World) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell_pid()
    time.sleep(100)


BEHAVIOURS: dict[str, Callable[[World], None]] = {
    behaviour.__name__: behaviour
    for behaviour in (
        meet,
        make_a_mistake,
        make_a_mistake_on_the_way,
        make_one_mistake_together,
        be_killed,
        be_killed_beside_a_busy_one,
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
