"""One file over http(s): resumed after a kill, retried with back-off, verified by checksum."""

import fcntl
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from urllib.response import addinfourl

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lmcore.errors import DataError
from lmcore.files import fingerprint, sha256_file

CHUNK_BYTES = 1 << 16  # the most that a broken connection loses
TIMEOUT_SECONDS = 30.0
RETRY_DELAYS_SECONDS = (1.0, 2.0, 4.0, 8.0)
RETRIED_STATUSES = {408, 425, 429, 500, 502, 503, 504}


class TransferError(Exception):
    """The transfer failed in a way that may pass; the bytes that came are kept."""


def fetch(url: str, sha256: str | None, target: Path, cache: Path) -> None:
    """Download `url` to `target`; what has come waits in `cache` until all of it is there and verified.

    Raises DataError when the server refuses, when the connection keeps failing, or when the checksum is another.
    """
    cache.mkdir(parents=True, exist_ok=True)
    key = fingerprint([url, sha256])[:16]
    console = Console(stderr=True)
    with _exclusive(cache / f"{key}.lock", f"{url}: waiting for another process that downloads it", console):
        transfer = Transfer(url, cache / f"{key}.part", cache / f"{key}.version", verified=sha256 is not None)
        with _show_progress(console, target.name) as (progress, task):
            transfer.run(progress, task)
        if sha256 is not None and (actual := sha256_file(transfer.partial)) != sha256.lower():
            transfer.restart(version=None)
            raise DataError(
                f"{url}: its sha256 is {actual}, expected {sha256.lower()}: it was damaged on the way (try again) "
                "or is another text now (give its own sha256, or none)"
            )
        shutil.move(transfer.partial, target)
        transfer.version.unlink(missing_ok=True)


class Transfer:
    """The requests that bring one url into the file `partial`, each going on where the last one stopped.

    The file `version` holds the server's mark of what is in `partial` (its ETag, or the time of its last change), so
    that a text is never glued from two versions. Without a mark it is resumed only if a checksum follows (`verified`).
    """

    def __init__(self, url: str, partial: Path, version: Path, *, verified: bool) -> None:
        self.url, self.partial, self.version, self.verified = url, partial, version, verified

    @property
    def size(self) -> int:
        """Bytes that have come so far."""
        return self.partial.stat().st_size if self.partial.exists() else 0

    def run(self, progress: Progress, task: TaskID) -> None:
        """Request until the file is whole. Gives up after some failures in a row that brought nothing new."""
        failures, furthest = 0, self.size
        while True:
            try:
                return self._request(progress, task)
            except TransferError as problem:
                failures = 1 if self.size > furthest else failures + 1
                furthest = max(furthest, self.size)
                if failures > len(RETRY_DELAYS_SECONDS):
                    remedy = "check the address and the network, and run the same command again"
                    raise DataError(f"{self.url}: {problem}, {failures} times in a row: {remedy}") from None
                delay = RETRY_DELAYS_SECONDS[failures - 1]
                progress.console.out(f"{self.url}: {problem}; trying again in {delay:g} s", highlight=False)
            time.sleep(delay)

    def restart(self, version: str | None) -> None:
        """Forget what came; what comes next is `version`."""
        self.partial.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)
        if version is not None:
            self.version.write_text(version, encoding="utf-8")

    def _request(self, progress: Progress, task: TaskID) -> None:
        """One request: append what the server sends. Raises TransferError unless all is here afterwards."""
        with self._open() as response:
            total = self._begin(response)
            progress.update(task, completed=self.size, total=total)
            with self.partial.open("ab") as file:
                while chunk := _read(response):
                    file.write(chunk)
                    file.flush()
                    progress.update(task, advance=len(chunk))
        if total is not None and self.size != total:
            raise TransferError(f"the connection ended after {self.size:,} of {total:,} bytes")

    def _open(self) -> addinfourl:
        """The server's answer, asked for the rest only where that is sure to fit what is here."""
        headers = {"User-Agent": "lmcore", "Accept-Encoding": "identity"}
        if self.size and (self.verified or self.version.exists()):
            headers["Range"] = f"bytes={self.size}-"
            if self.version.exists():
                headers["If-Range"] = self.version.read_text(encoding="utf-8")
        try:
            response: addinfourl = urlopen(Request(self.url, headers=headers), timeout=TIMEOUT_SECONDS)
            return response
        except HTTPError as error:
            if error.code == 416:
                return error
            answer = f"the server answered {error.code} {' '.join(str(error.reason).split())}"
            error.close()
            if error.code in RETRIED_STATUSES:
                raise TransferError(answer) from None
            raise DataError(f"{self.url}: {answer}: check the address") from None
        except (OSError, HTTPException, UnicodeError) as error:  # UnicodeError: a host with an empty part, a..b
            raise TransferError(f"no connection ({getattr(error, 'reason', None) or error})") from None

    def _begin(self, response: addinfourl) -> int | None:
        """Make `partial` ready for the body that follows. Returns the whole file's bytes, if the server tells."""
        content_range = response.headers.get("Content-Range", "")
        if response.status == 416 and content_range == f"bytes */{self.size}":
            return self.size  # all of it had come before the kill; the body is the server's apology
        if response.status == 206 and (match := re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range)):
            start, total = map(int, match.groups())
            if start == self.size:
                return total
        if response.status in {206, 416}:
            self.restart(version=None)
            raise TransferError(f"the server answered with another part than asked ({content_range!r})")
        tag = response.headers.get("ETag", "")
        weak = not tag or tag.startswith("W/")  # a weak tag promises the same meaning, not the same bytes
        self.restart(version=response.headers.get("Last-Modified") if weak else tag)
        length = response.headers.get("Content-Length")
        return int(length) if length is not None else None


def _read(response: addinfourl) -> bytes:
    """The next bytes of the body, none at its end."""
    if response.status == 416:
        return b""
    try:
        return response.read(CHUNK_BYTES)
    except (OSError, HTTPException) as error:
        raise TransferError(f"the connection broke ({error})") from None


@contextmanager
def _exclusive(path: Path, notice: str, console: Console) -> Iterator[None]:
    """Hold the lock file for the block; `notice` is shown if another process has it. A killed holder frees it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.out(notice, highlight=False)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _show_progress(console: Console, name: str) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on standard error, where that is a terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task(name, total=None)
