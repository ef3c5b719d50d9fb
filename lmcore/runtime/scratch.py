"""Places where the finished parts of a stage's work wait, so that a killed stage goes on from them."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

from lmcore.files import fingerprint
from lmcore.runtime.progress import say


@contextmanager
def reserve(scratch: Path, work: object) -> Iterator[Path]:
    """The folder below `scratch` for the parts of `work` (a JSON value that names it), for this process alone.

    A second process at the same work waits for the first. The folder is removed when the block ends well, and with it
    what killed stages left behind that nobody asks for. Parts that other code made are not found again.
    """
    key = fingerprint([fingerprint_code(), work])
    scratch.mkdir(parents=True, exist_ok=True)
    with hold(scratch / f"{key}.lock", f"{scratch.name}: waiting for another process at the same work"):
        for other in scratch.iterdir():
            if other.is_dir() and other.name != key:
                _remove_unless_held(other)
        place = scratch / key
        place.mkdir(exist_ok=True)
        yield place
        shutil.rmtree(place)


@cache
def fingerprint_code() -> str:
    """SHA-256 of lmcore's source files."""
    folder = Path(__file__).parents[1]
    digest = sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def hold(path: Path, notice: str) -> Iterator[None]:
    """Hold the lock file, which is gone afterwards; `notice` is said if another process has it.

    A killed holder frees it.
    """
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(notice)
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(path, file.fileno()):  # its last holder has removed it while we waited
                continue
            try:
                yield
            finally:
                path.unlink()
            return


def _is_at(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def _remove_unless_held(place: Path) -> None:
    """Remove the parts that a killed stage left, and that nobody has asked for since."""
    lock = place.with_name(f"{place.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if _is_at(lock, file.fileno()):  # else its last holder has removed it, and another may hold a new one
            shutil.rmtree(place, ignore_errors=True)
            lock.unlink()
