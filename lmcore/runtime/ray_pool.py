"""A Ray cluster that works on text: the same work as this machine's processes do, on several machines."""

import logging
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from lmcore.errors import LmcoreError, ParameterError
from lmcore.runtime.scratch import fingerprint_code

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 10.0
RETRIES = 5  # of an item whose machine died


class RayCluster:
    """An Executor of the Ray cluster that RAY_ADDRESS names, or that this machine belongs to.

    Each item is a task of one core, which Ray gives to another machine if the first one dies. All machines must see
    the project's folder under the same path and hold the same code, which is checked on entering. `workers` bounds the
    tasks at once; None is one for each core of the cluster.
    """

    def __init__(self, workers: int | None) -> None:
        self._limit = workers

    def __enter__(self) -> Self:
        try:
            import ray

            self._ray: Any = ray
        except ImportError:
            raise ParameterError(
                "hardware.data_engine=ray: Ray is not installed: pip install -e '.[ray]', or choose local"
            ) from None
        code = {"PYTHONPATH": str(Path(__file__).parents[2])}
        ray.init(find_cluster(), runtime_env={"env_vars": code}, log_to_driver=False, logging_level=logging.ERROR)
        self._require_shared_folder()
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    @property
    def workers(self) -> int:
        """Tasks at once."""
        return self._limit or max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Raises what `work` raises, and LmcoreError when an item could not be done on any machine."""
        run = self._ray.remote(num_cpus=1, max_retries=RETRIES)(run_in_folder)
        shared = self._ray.put((str(Path.cwd()), work))  # once for each machine, not for each item
        waiting: deque[Any] = deque()
        at_hand = self._limit or 2 * self.workers  # as many wait on the machines as are in work
        for item in items:
            waiting.append(run.remote(shared, item))
            if len(waiting) >= at_hand:
                yield _take(waiting.popleft())
        while waiting:
            yield _take(waiting.popleft())

    def _require_shared_folder(self) -> None:
        """Let every machine read a word that is written here."""
        import ray
        from ray.exceptions import RayError, RayTaskError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        word = secrets.token_hex(8)
        probe = Path.cwd() / f".probe-{word}"
        probe.write_text(word)
        try:
            for node in ray.nodes():
                on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                read = ray.remote(num_cpus=0, scheduling_strategy=on_node)(read_probe)
                try:
                    found = ray.get(read.remote(str(probe)))
                except RayTaskError:
                    raise
                except RayError:  # the machine has died: it gets no work
                    continue
                if found != (word, fingerprint_code()):
                    raise LmcoreError(
                        f"hardware.data_engine=ray: {node['NodeManagerHostname']} does not see {Path.cwd()} as it is "
                        f"here, with this code: put the project on a file system that all machines share"
                    )
        finally:
            probe.unlink()


def find_cluster() -> str:
    """HOST:PORT of the cluster. Raises LmcoreError where nothing listens there: Ray itself would try for minutes."""
    latest = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    address = os.environ.get("RAY_ADDRESS") or (latest.read_text().strip() if latest.exists() else "")
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError):
        raise LmcoreError(
            f"hardware.data_engine=ray: no Ray cluster at {address or 'hand'}: start it with `ray start --head` on one "
            f"machine and `ray start --address=HOST:PORT` on the others, and run on one of them (RAY_ADDRESS=HOST:PORT "
            f"chooses among several clusters); or choose local"
        ) from None
    return address


def run_in_folder(shared: tuple[str, Callable[[Item], Result]], item: Item) -> Result:
    """`work` of the item on another machine, in the folder of the project."""
    folder, work = shared
    os.chdir(folder)
    return work(item)


def read_probe(probe: str) -> tuple[str | None, str]:
    """What the file says on this machine, if it is there, and this machine's code."""
    path = Path(probe)
    return path.read_text() if path.exists() else None, fingerprint_code()


def _take(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise LmcoreError(
            f"the Ray cluster could not finish a part of the work ({str(error).splitlines()[0]}): look at `ray status` "
            f"and run the same command again, which goes on from here"
        ) from None
