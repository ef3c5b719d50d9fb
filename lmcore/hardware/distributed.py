"""The processes of one training: how they start, find each other, agree, and end together.

`launch` starts them on this machine; on several machines the user's own torchrun does. Either way each process reads
its place from torchrun's environment variables.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its imports are conditional
from torch.distributed.rendezvous import rendezvous

from lmcore.errors import LmcoreError, ParameterError, report_errors
from lmcore.hardware.signals import catch_signals
from lmcore.runtime.gpu_locks import claimed_gpus, held_locks

Value = TypeVar("Value")

# Some cluster managers set RANK and MASTER_ADDR to mean machines: only all of them together are torchrun's.
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
JOIN_TIMEOUT = timedelta(minutes=10)  # until every process has found the others
# A process that waits is no sign of trouble: the first one may be waiting for the run's lock, or writing. A dead one
# shows at once, gloo reports its closed connection within 0.03 s, and its launcher ends the others.
COLLECTIVE_TIMEOUT = timedelta(days=1)
# A process that lost another leaves by itself and may have to say why; then it is asked to, then killed.
PATIENCE_SECONDS, GRACE_SECONDS = 3.0, 30.0
POLL_SECONDS = 0.1
LOOK_SECONDS = 0.2  # from one look at the parent process to the next, 0.03 ms each
LOOPBACK = {"linux": "lo", "darwin": "lo0"}.get(sys.platform, "")
LEFT = 128 + signal.SIGTERM  # the status of a process that was asked to leave and did
PEER_IS_GONE = re.compile(
    r"gloo/transport.*(closed by peer|reset by peer|Broken pipe)|remote process exited|failed to (recv|send)", re.DOTALL
)


class LostProcessError(LmcoreError):
    """A process of the run died without a word."""

    def __init__(self, process: str) -> None:
        remedy = "run the same command again, it goes on from the last checkpoint"
        super().__init__(f"{process} was killed, perhaps for want of memory: {remedy}")


@dataclass(frozen=True)
class World:
    """One process among the `size` that train as one; `local_rank` counts those on this machine.

    Every method is a collective: all processes call it, in the same order. With one process it does nothing.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes and speaks."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by the sum over all processes, equal on each to the last bit, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def max(self, number: int) -> int:
        """The largest number that any process has. Over gloo on the host: a GPU is neither used nor waited for."""
        if self.size == 1:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def any(self, flag: bool) -> bool:
        """Whether any process says so; on the host, as `max`."""
        return bool(self.max(flag))

    def barrier(self) -> None:
        """Wait until all processes call this; on the host, as `max`."""
        self.max(0)

    def broadcast(self, value: Value) -> Value:
        """Return the main process's `value`, which JSON can hold, for what processes might find differently.

        For example the newest checkpoint, the free memory or the speed of the machine. It is sent as JSON because
        `broadcast_object_list` loads a pickle.
        """
        if self.size == 1:
            return value
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor(len(content))
        dist.broadcast(length, src=0)
        content = content if self.is_main else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(content, src=0)
        decided: Value = json.loads(bytes(content.tolist()))
        return decided


def split_batch(batch_size: int, world: World) -> slice:
    """Which windows of the one global batch are this process's. Of 6 over 3 processes, the second has 2 and 3.

    All have equally many, so that the mean of their gradients is the batch's gradient. Raises ParameterError otherwise.
    """
    if batch_size % world.size:
        fitting = max(number for number in range(1, world.size) if batch_size % number == 0)
        raise ParameterError(
            f"train.batch_size={batch_size}: must be divisible by the {world.size} processes that share it; run "
            f"{fitting} of them (hardware.processes), since another batch size would be another training"
        )
    share = batch_size // world.size
    return slice(world.rank * share, (world.rank + 1) * share)


def is_worker() -> bool:
    """Whether torchrun, or `launch`, started this process as one of several. Raises ParameterError if in part."""
    if "RANK" not in os.environ:
        return False
    missing = [name for name in TORCHRUN_VARIABLES if name not in os.environ]
    if missing:
        raise ParameterError(
            f"RANK={os.environ['RANK']} is set in the environment, but not {', '.join(missing)}: start the processes "
            f"with torchrun, which sets them all, or unset RANK"
        )
    return True


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Meet the other processes, if there are any, and part from them at the end; `device` is cpu, cuda or mps.

    An end in order (SystemExit too) waits for all. An error ends the process at once, with status 1: it is reported by
    the process that fails first, the others, who fail for want of that one, say nothing, so that a mistake stays one
    line. Hence it belongs outside of everything that has something to put in order.
    """
    if not is_worker() or int(os.environ["WORLD_SIZE"]) == 1:
        yield World()
        return
    store, rank, size = next(rendezvous("env://", timeout=JOIN_TIMEOUT))
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
    world = World(rank, size, int(os.environ["LOCAL_RANK"]))
    leaving: SystemExit | None = None
    try:
        if device == "cuda":
            _take_gpu(world.local_rank)
        try:
            yield world
        except SystemExit as error:
            # Without its traceback, which would keep a distributed model alive beyond its process group: torch 2.13
            # waits for ever where the last reference to a gloo group goes while an all-reduce gives back a tensor.
            leaving = error.with_traceback(None)
        world.barrier()
        dist.destroy_process_group()
    except BaseException as error:
        _fail(error, store, size)
    if leaving is not None:
        raise leaving


def _fail(error: BaseException, store: TCPStore, size: int) -> NoReturn:
    """End the process as an uncaught `error` does, but at once.

    torch's own way out waits for collectives that have begun, until the other processes come to them (15 s where they
    slept for 15 s), and without them still aborted in 4 of 25 trials.
    """
    try:
        is_first = bool(store.add("failures", 1) == 1)
    except dist.DistError:
        is_first = True  # the store went with the process that kept it, which therefore said nothing
    status = 1
    if is_first:
        try:
            with report_errors():
                if PEER_IS_GONE.search(str(error)):
                    raise LostProcessError(f"one of the {size} processes") from error
                raise error
        except SystemExit as reported:
            status = reported.code if isinstance(reported.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _take_gpu(local_rank: int) -> None:
    gpus = claimed_gpus() or list(range(torch.cuda.device_count()))
    count = len(gpus)
    if local_rank >= count:
        raise ParameterError(
            f"process {local_rank + 1} of this machine has no GPU, it has {count}: set hardware.processes={count} "
            f"(torchrun: --nproc-per-node={count})"
        )
    torch.cuda.set_device(gpus[local_rank])


def launch(processes: int, module: str) -> None:
    """Run `python -m module` in so many processes on this machine, and leave with their status.

    Returns at once where one is enough, and in each of them. INT, TERM and HUP ask them to save and leave, for as
    long as that takes; a second signal kills them. (torchrun kills after 30 s, does not tell whether a run that it
    ended was complete, and answers a one-line error with a page.) Raises LostProcessError if one was killed.
    """
    if processes == 1 or is_worker():
        return
    # Kept here, the store outlives every process that could fail.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    shared = {
        # Left to itself gloo asks for the address of the host's own name: a laptop's may lead nowhere, or to a network
        # that it leaves. torch would print two lines about that.
        "GLOO_SOCKET_IFNAME": LOOPBACK,
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        **os.environ,
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": str(True),  # torch's word for a store that is there already
        "OMP_NUM_THREADS": threads,
    }
    with catch_signals(ends_at_second=False) as interrupt:
        workers = [
            # In sessions of their own: Ctrl-C on the terminal would reach them twice, from it and from here.
            subprocess.Popen(
                [sys.executable, "-m", module],
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                start_new_session=True,
                pass_fds=held_locks(),
            )
            for rank in range(processes)
        ]
        raise SystemExit(_supervise(workers, interrupt.events))


def _supervise(workers: list[subprocess.Popen[bytes]], signals: list[int]) -> int:
    """Wait for all; pass signals on; when one fails, end the others. The exit status of the whole."""
    force, failed_at = 0, float("inf")
    first: tuple[int, int] | None = None  # who failed first: rank and status
    while None in (statuses := [worker.poll() for worker in workers]):
        now = time.monotonic()
        if first is None:
            failed = ((rank, status) for rank, status in enumerate(statuses) if status not in (None, 0, LEFT))
            first = next(failed, None)
            failed_at = now if first else failed_at
        wanted = max(len(signals), (now > failed_at + PATIENCE_SECONDS) + (now > failed_at + GRACE_SECONDS))
        if wanted > force:
            force = wanted
            for worker in workers:
                # TERM for INT too: a process that is still importing would print where it was.
                worker.send_signal(signal.SIGTERM if force == 1 else signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    ended = [worker.returncode for worker in workers]
    if not any(ended):
        return 0
    if signals:
        return 128 + signals[0]
    spoken = next((status for status in ended if status > 0), None)
    if spoken is not None:
        return spoken
    rank, status = first or next((rank, status) for rank, status in enumerate(ended) if status)
    raise LostProcessError(f"process {rank + 1} of {len(workers)} ({signal.Signals(-status).name})")


def follow_parent() -> None:
    """Under DVC, take its death for a TERM; as one of several processes, that of the one that started them.

    Otherwise a killed `dvc repro` leaves a trainer behind that nobody sees, and the next one waits for it.
    """
    if is_worker():
        parent = psutil.Process().parent()
    elif "DVC_STAGE" in os.environ:
        parent = next(filter(_is_dvc, psutil.Process().parents()), None)
    else:
        return
    if parent is not None:
        threading.Thread(target=_leave_after, args=[parent], name="follow_parent", daemon=True).start()


def _is_dvc(ancestor: psutil.Process) -> bool:
    """What DVC starts has DVC_STAGE in its environment; DVC itself, above it, has not.

    The shell that DVC starts commands in has it too: dash waits for them, where bash becomes the command.
    """
    try:
        return "DVC_STAGE" not in ancestor.environ()
    except psutil.Error:  # gone, or of another user: not what our DVC started
        return True


def _leave_after(parent: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        # A dead one stays, as a zombie, until the process above it looks: `parent.wait()` would wait for that.
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
