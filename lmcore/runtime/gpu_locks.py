"""Which graphics cards a process has for itself: a file lock for each, which the system frees when the process ends."""

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lmcore.errors import ArtifactError
from lmcore.files import project_root
from lmcore.runtime.locks import hold, lock
from lmcore.runtime.progress import say

CARDS = "LMCORE_CARDS"  # the numbers of the cards that were claimed, as 0,2: processes that are started inherit it
LOOK_SECONDS = 1.0  # from one look for free cards to the next

_locks: list[int] = []  # descriptors of the locks, open as long as this process lives


def claim_gpus(names: Sequence[str], count: int) -> list[int]:
    """The places in `names` of `count` cards, which this process has until it ends; waits until so many are free.

    Nothing is claimed twice: not by a second call, nor by processes that this one starts.
    """
    if CARDS not in os.environ:
        os.environ[CARDS] = ",".join(map(str, wait_for_gpus(names, count, lock_folder())))
    return claimed_gpus()


def claimed_gpus() -> list[int]:
    """The places of the cards that this process, or the one that started it, has claimed."""
    return [int(place) for place in os.environ.get(CARDS, "").split(",") if place]


def held_locks() -> tuple[int, ...]:
    """Descriptors of the locks, for `subprocess`'s pass_fds: a card is free when the last process that has one is gone.

    Workers outlive a launcher that is killed for as long as they save.
    """
    return tuple(_locks)


def lock_folder() -> Path:
    """Where the locks are: one place for all checkouts of this user on this machine, below TMPDIR.

    Raises ArtifactError where it is somebody else's, who could hold this user up or name files for it to open.
    """
    folder = Path(tempfile.gettempdir(), f"lmcore-cards-{os.getuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ArtifactError(f"{folder} belongs to somebody else: set TMPDIR to a folder of your own")
    return folder


def wait_for_gpus(names: Sequence[str], count: int, folder: Path) -> list[int]:
    """The places in `names` of `count` cards whose locks this process has now; says who has them while it must wait.

    All or none are taken, so that two processes never wait for each other's: what is too few is given back at once.
    """
    said: list[str] = []
    while True:
        with hold(folder / "claiming.lock"):  # two that try at once would find each other's half
            taken, holders = _try_to_take(names, count, folder)
            if len(taken) == count:
                experiment = f" of {name}" if (name := os.environ.get("DVC_EXP_NAME")) else ""
                stage = os.environ.get("DVC_STAGE", "a program")
                for descriptor in taken.values():
                    os.truncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} ({stage}{experiment} in {project_root()})".encode())
                # Programs that tidy up temporary folders leave alone what is below one that somebody has locked
                # (tmpfiles.d(5)); a lock file that was removed would be no lock any more.
                shelter = os.open(folder, os.O_RDONLY)
                lock(shelter, wait=True, shared=True)
                _locks.extend([*taken.values(), shelter])
                return list(taken)
            for descriptor in taken.values():
                os.close(descriptor)
        if holders != said:
            said = holders
            say(f"waiting for {count} of {len(names)} {'card' if len(names) == 1 else 'cards'}: {'; '.join(holders)}")
        time.sleep(LOOK_SECONDS)


def _try_to_take(names: Sequence[str], count: int, folder: Path) -> tuple[dict[int, int], list[str]]:
    """Places and descriptors of up to `count` cards that were free, and who has those that were not."""
    taken: dict[int, int] = {}
    holders = []
    for place, name in enumerate(names):
        path = folder / f"{name}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if lock(descriptor):
            taken[place] = descriptor
            if len(taken) == count:
                break
        else:
            os.close(descriptor)
            holders.append(f"{name} is held by {path.read_text()}")
    return taken, holders
