"""File locks between processes; the system frees the lock of a process that ends or is killed."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lmcore.runtime.progress import say


@contextmanager
def hold(path: Path, notice: str = "") -> Iterator[bool]:
    """Hold the lock file `path` for the block; yield True if another process held it before, and this one waited.

    `notice` is said before the wait. The file is removed afterwards.
    """
    waited = False
    while True:
        with path.open("w") as file:
            if not lock(file):
                if notice and not waited:
                    say(notice)
                waited = True
                lock(file, wait=True)
            if not _is_at(path, file):  # its last holder has removed it while we waited
                continue
            try:
                yield waited
            finally:
                path.unlink(missing_ok=True)
            return


@contextmanager
def try_hold(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` for the block unless another process holds it; yield True if this one does."""
    with path.open("w") as file:
        held = lock(file) and _is_at(path, file)  # else its last holder has removed it, and another may hold a new one
        try:
            yield held
        finally:
            if held:
                path.unlink(missing_ok=True)


def is_locked(path: Path) -> bool:
    """Return True if a process holds the lock file `path`, which need not exist.

    The lock asked for is a shared one, so that two processes that look at once do not see each other.
    """
    try:
        with path.open() as file:
            return not lock(file, shared=True)
    except FileNotFoundError:
        return False


def lock(file: int | IO[str], *, wait: bool = False, shared: bool = False) -> bool:
    """Lock an open file until it is closed; return False if another process holds it and `wait` is not set."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, file: IO[str]) -> bool:
    """Return True if `path` is still the name of the open `file`."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False
