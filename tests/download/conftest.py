"""A web server on 127.0.0.1 that resumes, refuses, truncates, drops and dawdles as told."""

import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lmcore.download import fetch
from lmcore.download import stores as remote


@dataclass
class Page:
    """What one path answers: to the first request by the first entry of a list, then the second, then as it should."""

    body: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)
    drops: list[int] = field(default_factory=list)  # bytes after which the connection breaks off
    shift: int = 0  # answers ranges beginning this many bytes too late
    pause: float = 0.0  # seconds before each 64 KiB
    has_length: bool = True


class Web(ThreadingHTTPServer):
    """Pages by path, and the requests that came: path and Range header."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, str | None]] = []

    def put(self, path: str, body: bytes, **behaviour: Any) -> str:
        """Serve `body` at `path`. Returns its address."""
        self.pages[path] = Page(body, **behaviour)
        return self.address(path)

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed break connections; that is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        page = self.server.pages.get(self.path)
        status = page.statuses.pop(0) if page and page.statuses else 200
        if page is None or status != 200:
            return self.send_error(404 if page is None else status)
        begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and page.ranges else 0
        if self.headers.get("If-Range", page.etag) != page.etag:
            begin = 0
        total = len(page.body)
        if begin >= total > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if begin else 200)
        if begin:
            begin += page.shift
            self.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
        if page.etag:
            self.send_header("ETag", page.etag)
        if page.has_length:
            self.send_header("Content-Length", str(total - begin))
        self.end_headers()
        end = begin + page.drops.pop(0) if page.drops else total
        for place in range(begin, min(end, total), 1 << 16):
            time.sleep(page.pause)
            self.wfile.write(page.body[place : min(place + (1 << 16), end)])
            self.wfile.flush()
        return None

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's root in the test's own folder; no proxy, no waiting between trials."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "RETRY_DELAYS_SECONDS", (0.0, 0.0, 0.0))
    return tmp_path


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None but those that a test sets; small requests."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "HF_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(remote, "CHUNK_BYTES", 1 << 16)
