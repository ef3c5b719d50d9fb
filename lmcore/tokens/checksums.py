"""Arrays that were read through once, and what was found: no start reads them again unless they were touched."""

import hashlib
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lmcore.errors import ArtifactError
from lmcore.files import read_array_header
from lmcore.runtime.progress import BytesProgress

VERIFIED = Path(".cache/verified")  # in the project's root
CHUNK_BYTES = 1 << 20  # of whole numbers, whatever their type
# The clock of a file system ticks every few milliseconds: a file that is read in the tick of its last change could be
# changed again and keep its time. Git knows such entries as racily clean.
TICK_NS = 20_000_000
NAME = re.compile(r"(?P<identity>\d+-\d+-\d+-\d+)\.(?P<largest>-1|\d+)\.(?P<sha256>[0-9a-f]{64})")


@dataclass(frozen=True)
class Contents:
    """What reading a .npy file of whole numbers found; `largest` is -1 if there are none."""

    sha256: str
    largest: int


class VerifiedFiles:
    """The contents of files by their device, inode, size and time of change: each file is read once.

    They are remembered in `folder` (None: in this process alone), for each file an empty one whose name says all. Such
    a file appears in one step, so that processes cannot disturb each other.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @cached_property
    def _known(self) -> dict[str, Contents]:
        """The contents by `_identify`."""
        names = [path.name for path in self._folder.iterdir()] if self._folder and self._folder.is_dir() else []
        matches = filter(None, map(NAME.fullmatch, names))  # what others put there says nothing
        return {match["identity"]: Contents(match["sha256"], int(match["largest"])) for match in matches}

    def examine(self, path: Path) -> Contents:
        """The contents of the file at `path`, which is read unless they are known."""
        identity = _identify(path)
        if identity not in self._known:
            age = time.time_ns() - path.stat().st_mtime_ns
            if 0 <= age < TICK_NS:
                time.sleep(TICK_NS / 1e9)
            contents = _read(path)
            if _identify(path) != identity:
                raise ArtifactError(f"{path} was changed while it was read: run the same command again")
            self._remember(identity, contents)
        return self._known[identity]

    def examine_all(self, name: str, paths: Iterable[Path]) -> list[Contents]:
        """`examine` of each; the progress of what has to be read is shown under `name`."""
        paths = list(paths)
        sizes = [0 if _identify(path) in self._known else path.stat().st_size for path in paths]
        if not any(sizes):
            return [self.examine(path) for path in paths]
        with BytesProgress(name, sum(sizes)) as progress:
            return list(progress.follow(map(self.examine, paths), sizes))

    def _remember(self, identity: str, contents: Contents) -> None:
        device, inode, *_ = identity.split("-")
        stale = [known for known in self._known if known.startswith(f"{device}-{inode}-")]  # what the file was before
        for earlier in stale:
            del self._known[earlier]
        self._known[identity] = contents
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            for earlier in stale:
                for path in self._folder.glob(f"{earlier}.*"):
                    path.unlink(missing_ok=True)
            (self._folder / f"{identity}.{contents.largest}.{contents.sha256}").touch()


def _identify(path: Path) -> str:
    status = path.stat()
    return f"{status.st_dev}-{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def _read(path: Path) -> Contents:
    """One pass over the file, a megabyte at a time. What is no .npy file has no numbers."""
    with path.open("rb") as file:
        try:
            _, dtype = read_array_header(file)
        except ValueError:
            dtype = np.dtype("V1")
        header = file.tell()
        file.seek(0)
        digest = hashlib.sha256(file.read(header))
        largest = -1
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            if dtype.kind == "u" and len(chunk) >= dtype.itemsize:
                numbers = np.frombuffer(chunk, dtype, count=len(chunk) // dtype.itemsize)
                largest = max(largest, int(numbers.max()))
    return Contents(digest.hexdigest(), largest)
