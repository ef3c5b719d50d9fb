"""Files from elsewhere, several at once: resumed after a kill, retried with back-off, verified by checksum."""

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from lmcore.errors import FULL_DISK, DataError
from lmcore.files import fingerprint, sha256_file
from lmcore.runtime.locks import hold

FILES_AT_ONCE = 4
RETRY_DELAYS_SECONDS = (1.0, 2.0, 4.0, 8.0)

Result = TypeVar("Result")


class TransferError(Exception):
    """The transfer failed in a way that may pass; the bytes that came are kept."""


class OtherPartError(TransferError):
    """What came is not what was asked for: nothing that is here can be trusted to fit it."""


class StoppedError(Exception):
    """Another file's failure ended this transfer; the bytes that came are kept."""


@dataclass(frozen=True)
class Body:
    """What an origin sends: the bytes from `start` on, of `total` if it tells, of the version that `mark` names."""

    start: int
    total: int | None
    mark: str | None
    chunks: Iterator[bytes]


class Origin(Protocol):
    """Where one file's bytes come from: an address on the web, or a place in a store."""

    def open(self, start: int, mark: str | None) -> AbstractContextManager[Body]:
        """The bytes from `start` on if the version is still `mark` (None: whatever it is), else from 0 on.

        Raises TransferError when it is worth another trial, also while the chunks are read, and DataError when not.
        """

    def checksum(self, mark: str | None) -> tuple[str, str] | None:
        """The algorithm and the value that are published with the version `mark`, as ("sha256", "86c4e6...")."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file to fetch: what messages call it, where its bytes come from, and what is known of it."""

    url: str
    origin: Origin
    bytes: int | None = None
    sha256: str | None = None  # that the user or the catalogue asks for


@dataclass(frozen=True)
class Arrival:
    """One file that has come and is verified; `path` is in the cache, from where it is to be moved."""

    path: Path
    bytes: int
    sha256: str
    mark: str | None


@contextmanager
def fetch_files(files: Sequence[RemoteFile], cache: Path) -> Iterator[list[Arrival]]:
    """Download `files`, some at once, for the block, which moves them to where they belong.

    What has come waits in `cache` until all of it is there and verified, so that a failure, a kill or an error in the
    block costs nothing that had arrived. Raises DataError when a server refuses, when a connection keeps failing, when
    a checksum is another, or, before anything is fetched, when the disk has too little room.
    """
    if not files:
        yield []
        return
    cache.mkdir(parents=True, exist_ok=True)
    with hold(cache / "downloads.lock", "download: waiting for another process that downloads"):
        transfers = [Transfer(file, cache) for file in files]
        require_space(cache, sum(max(0, (each.file.bytes or 0) - each.size) for each in transfers))
        stop = threading.Event()
        with Bars(files) as bars, ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            futures = [pool.submit(transfer.run, bars, stop) for transfer in transfers]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:  # the first failure ends the others
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        yield [future.result() for future in futures]
        for transfer in transfers:
            transfer.version.unlink(missing_ok=True)


class Transfer:
    """The requests that bring one file into `partial`, each going on where the last one stopped.

    The file `version` holds the mark of what is in `partial` (its ETag, the time of its last change, a checksum that
    is published with it), so that a text is never glued from two versions. Without a mark it is resumed only if the
    user's checksum follows.
    """

    def __init__(self, file: RemoteFile, cache: Path) -> None:
        key = fingerprint([file.url, file.sha256])[:16]
        self.file, self.partial, self.version = file, cache / f"{key}.part", cache / f"{key}.version"

    @property
    def size(self) -> int:
        """Bytes that have come so far."""
        return self.partial.stat().st_size if self.partial.exists() else 0

    @property
    def mark(self) -> str | None:
        """Which version they are of."""
        return self.version.read_text(encoding="utf-8") if self.version.exists() else None

    def run(self, bars: "Bars", stop: threading.Event) -> Arrival:
        """Request until the file is whole, and verify it."""
        say = partial(bars.console.out, highlight=False)  # between the bars
        persist(lambda: self._request(bars, stop), self.file.url, say, lambda: self.size, stop)
        sha256 = self._verify()
        bars.update(bars.of_file[self.file.url], visible=len(bars.of_file) == 1)
        return Arrival(self.partial, self.size, sha256, self.mark)

    def restart(self, mark: str | None) -> None:
        """Forget what came; what comes next is the version `mark`."""
        self.partial.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)
        if mark is not None:
            self.version.write_text(mark, encoding="utf-8")

    def _request(self, bars: "Bars", stop: threading.Event) -> None:
        """One request: append what the origin sends. Raises TransferError unless all is here afterwards."""
        mark = self.mark
        resumable = mark is not None or self.file.sha256 is not None
        try:
            with self.file.origin.open(self.size if resumable else 0, mark) as body:
                if body.start != self.size or body.start == 0:
                    self.restart(body.mark)
                bars.show(self.file, self.size, body.total)
                require_space(self.partial.parent, (body.total or 0) - self.size)
                self._append(body.chunks, bars, stop)
        except OtherPartError:
            self.restart(None)
            raise
        if body.total is not None and self.size != body.total:
            raise TransferError(f"the connection ended after {self.size:,} of {body.total:,} bytes")

    def _append(self, chunks: Iterator[bytes], bars: "Bars", stop: threading.Event) -> None:
        with self.partial.open("ab") as file:
            for chunk in chunks:
                try:
                    file.write(chunk)
                    file.flush()
                except OSError as error:
                    if error.errno in FULL_DISK:
                        error.filename = str(self.partial.parent)
                    raise
                bars.grow(self.file, len(chunk))
                if stop.is_set():
                    raise StoppedError

    def _verify(self) -> str:
        """The SHA-256 of what came. Raises DataError, and forgets it, if it is not what it should be."""
        sha256 = sha256_file(self.partial)
        if self.file.sha256 is not None and sha256 != self.file.sha256.lower():
            self.restart(None)
            raise DataError(
                f"{self.file.url}: its sha256 is {sha256}, expected {self.file.sha256.lower()}: it was damaged on the "
                "way (try again) or is another text now (give its own sha256, or none)"
            )
        if published := self.file.origin.checksum(self.mark):
            algorithm, expected = published
            with self.partial.open("rb") as file:
                actual = sha256 if algorithm == "sha256" else hashlib.file_digest(file, algorithm).hexdigest()
            if actual != expected:
                self.restart(None)
                raise DataError(
                    f"{self.file.url}: its {algorithm} is {actual}, the store publishes {expected}: it was damaged on "
                    "the way: run the same command again"
                )
        return sha256


def persist(
    attempt: Callable[[], Result],
    url: str,
    say: Callable[[str], None],
    measure: Callable[[], int] = lambda: 0,
    stop: threading.Event | None = None,
) -> Result:
    """What `attempt` returns at last, asked again after a pause each time that it raises TransferError.

    Gives up with DataError after some failures in a row that brought nothing new by `measure`; with StoppedError when
    `stop` is set.
    """
    failures, furthest = 0, measure()
    stop = stop or threading.Event()
    while True:
        try:
            return attempt()
        except TransferError as problem:
            failures = 1 if measure() > furthest else failures + 1
            furthest = max(furthest, measure())
            if failures > len(RETRY_DELAYS_SECONDS):
                remedy = "check the address and the network, and run the same command again"
                raise DataError(f"{url}: {problem}, {failures} times in a row: {remedy}") from None
            delay = RETRY_DELAYS_SECONDS[failures - 1]
            say(f"{url}: {problem}; trying again in {delay:g} s")
        if stop.wait(delay):
            raise StoppedError


def require_space(folder: Path, needed: int) -> None:
    """Raise DataError if the disk of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{needed / 1e6:,.0f} MB are still to come, and {folder} has {free / 1e6:,.0f} MB free: free some "
            f"space, or choose less text"
        )


class Bars(Progress):
    """A bar for each file on its way, and one for all, on standard error, where that is a terminal."""

    def __init__(self, files: Sequence[RemoteFile]) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self.of_file = {
            file.url: self.add_task(file.url.rpartition("/")[2], total=file.bytes, visible=False) for file in files
        }
        sizes = [file.bytes for file in files if file.bytes is not None]
        total = sum(sizes) if len(sizes) == len(files) else None
        self.whole = self.add_task(f"{len(files):,} files", total=total, visible=len(files) > 1)

    def show(self, file: RemoteFile, size: int, total: int | None) -> None:
        """A request for `file` has begun, of which `size` bytes are here."""
        task = self.of_file[file.url]
        self.update(self.whole, advance=size - self.tasks[task].completed)
        self.update(task, completed=size, total=total, visible=True)

    def grow(self, file: RemoteFile, size: int) -> None:
        """So many bytes more have come."""
        for task in (self.of_file[file.url], self.whole):
            self.update(task, advance=size)
