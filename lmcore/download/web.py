"""One file over http(s), from any byte on."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen
from urllib.response import addinfourl

from lmcore.download.fetch import Body, OtherPartError, TransferError
from lmcore.errors import DataError

CHUNK_BYTES = 1 << 16  # the most that a broken connection loses
TIMEOUT_SECONDS = 30.0
RETRIED_STATUSES = {408, 425, 429, 500, 502, 503, 504}
NEEDS_CREDENTIALS = {401, 403}


class WebFile:
    """What lies at an http(s) address. Its version is what the server says (ETag, Last-Modified).

    `mark` names it instead where the address always gives the same bytes, `sha256` is what is published with it, and
    `headers` go to the address's own server and to none that it redirects to: they may hold a key.
    """

    def __init__(
        self, url: str, *, mark: str | None = None, sha256: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.url, self.mark, self.sha256, self.headers = url, mark, sha256, headers or {}

    def checksum(self, mark: str | None) -> tuple[str, str] | None:
        """The SHA-256 that is published with it."""
        return ("sha256", self.sha256) if self.sha256 and mark == self.mark else None

    @contextmanager
    def open(self, start: int, mark: str | None) -> Iterator[Body]:
        """The server's answer, asked for the rest only where that is sure to fit what is here."""
        if self.mark is not None and mark != self.mark:
            start = 0
        with self._ask(start, mark) as response:
            yield self._begin(response, start)

    def _ask(self, start: int, mark: str | None) -> addinfourl:
        request = Request(self.url, headers={"User-Agent": "lmcore", "Accept-Encoding": "identity"})
        for name, value in self.headers.items():
            request.add_unredirected_header(name, value)
        if start:
            request.add_header("Range", f"bytes={start}-")
            if mark is not None and self.mark is None:
                request.add_header("If-Range", mark)
        try:
            response: addinfourl = urlopen(request, timeout=TIMEOUT_SECONDS)
            return response
        except HTTPError as error:
            if error.code == 416:
                return error
            answer = f"the server answered {error.code} {' '.join(str(error.reason).split())}"
            error.close()
            if error.code in RETRIED_STATUSES:
                raise TransferError(answer) from None
            credentials = " and your credentials" if error.code in NEEDS_CREDENTIALS else ""
            raise DataError(f"{self.url}: {answer}: check the address{credentials}") from None
        except (OSError, HTTPException, UnicodeError) as error:  # UnicodeError: a host with an empty part, a..b
            raise TransferError(f"no connection ({getattr(error, 'reason', None) or error})") from None

    def _begin(self, response: addinfourl, start: int) -> Body:
        """What follows: the rest that was asked for, or the whole."""
        content_range = response.headers.get("Content-Range", "")
        if response.status == 416 and content_range == f"bytes */{start}":
            return Body(start, start, self.mark, iter(()))  # all of it had come; the body is the server's apology
        if response.status == 206 and (match := re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range)):
            first, total = map(int, match.groups())
            if first == start:
                return Body(start, total, self.mark, _read(response))
        if response.status in {206, 416}:
            raise OtherPartError(f"the server answered with another part than asked ({content_range!r})")
        tag = response.headers.get("ETag", "")
        weak = not tag or tag.startswith("W/")  # a weak tag promises the same meaning, not the same bytes
        mark = self.mark or (response.headers.get("Last-Modified") if weak else tag)
        length = response.headers.get("Content-Length")
        return Body(0, int(length) if length is not None else None, mark, _read(response))


def is_web_address(url: str) -> bool:
    """Whether urllib can ask for it: http(s), a host, a port that is a number, nothing that needs encoding."""
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname and parts.port != 0)
            and bool(re.fullmatch("[!-~]+", url))
        )
    except ValueError:
        return False


def _read(response: addinfourl) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(CHUNK_BYTES)
        except (OSError, HTTPException) as error:
            raise TransferError(f"the connection broke ({error})") from None
        if not chunk:
            return
        yield chunk
