"""Places where the finished parts of a stage's work wait, so that a killed stage goes on from them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from lmcore.files import fingerprint, sha256_file
from lmcore.runtime.locks import hold, try_hold


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
            if other.is_dir() and other.name != key:  # of a killed stage, unless another process is at it
                with try_hold(other.with_name(f"{other.name}.lock")) as is_abandoned:
                    if is_abandoned:
                        shutil.rmtree(other, ignore_errors=True)
        place = scratch / key
        place.mkdir(exist_ok=True)
        yield place
        shutil.rmtree(place)


@cache
def fingerprint_code() -> str:
    """The fingerprint of lmcore's source files."""
    folder = Path(__file__).parents[1]
    return fingerprint({str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*.py")})
