"""Stores on 127.0.0.1, the part of S3 and of Hugging Face's hub that lists and sends files; downloads from them."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from lmcore.download.params import DownloadParams
from lmcore.params import parse_section

COMMIT = "c0ffee" + 34 * "1"


@dataclass
class Entry:
    """One file, and how it misbehaves; a list has an entry for each of the first answers to a request of its bytes."""

    body: bytes
    etag: str = ""  # S3's; empty: the MD5, as where a file came in one part
    sha256: str = ""  # the hub's; empty: the true one, or none if it is not kept in LFS
    lfs: bool = True
    encryption: str | None = None
    statuses: list[int] = field(default_factory=list)
    drops: list[int] = field(default_factory=list)  # bytes after which the connection breaks off
    pause: float = 0.0  # seconds before each 64 KiB

    @property
    def mark(self) -> str:
        return self.etag or hashlib.md5(self.body).hexdigest()


class Store(ThreadingHTTPServer):
    """Files by their path, `bucket/key` or a path in the repository; the requests for bytes: path and Range header."""

    daemon_threads = True

    def __init__(self, handler: type["StoreHandler"]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.entries: dict[str, Entry] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.signed: set[bool] = set()  # whether requests came with credentials; the hub's, where it redirects to
        self.tokens: set[str | None] = set()  # that the hub was shown
        self.commit = COMMIT

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed break connections; that is no news."""


class StoreHandler(BaseHTTPRequestHandler):
    server: Store
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, path: str, entry: Entry, headers: dict[str, str]) -> None:
        """The bytes that the Range header asks for, as badly as the entry says."""
        wanted = self.headers.get("Range")
        self.server.requests.append((path, wanted))
        if entry.statuses:
            return self.answer(entry.statuses.pop(0))
        begin, end = 0, len(entry.body)
        if wanted and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)):
            begin, end = int(match[1]), min(end, int(match[2] or end) + 1)
        if begin >= len(entry.body) > 0:
            return self.answer(416, headers={"Content-Range": f"bytes */{len(entry.body)}"})
        self.send_response(206 if wanted else 200)
        if wanted:
            headers = {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{len(entry.body)}"}
        for name, value in {"Content-Length": str(end - begin), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        last = begin + entry.drops.pop(0) if entry.drops else end
        for place in range(begin, min(last, end), 1 << 16):
            time.sleep(entry.pause)
            self.wfile.write(entry.body[place : min(place + (1 << 16), last, end)])
            self.wfile.flush()
        self.close_connection = last < end
        return None

    def log_message(self, *_: object) -> None:
        """Quiet."""


class S3Handler(StoreHandler):
    """ListObjectsV2, HeadObject and GetObject: https://docs.aws.amazon.com/AmazonS3/latest/API/."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.signed.add("Authorization" in self.headers)
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        if bucket == "closed":
            return self.refuse(403, "AccessDenied")
        if not any(path.startswith(f"{bucket}/") for path in self.server.entries):
            return self.refuse(404, "NoSuchBucket")
        if not key:
            return self.answer(200, self.list_objects(bucket, query), {"Content-Type": "application/xml"})
        entry = self.server.entries.get(f"{bucket}/{key}")
        if entry is None:
            return self.refuse(404, "NoSuchKey")
        if self.headers.get("If-Match", entry.mark).strip('"') != entry.mark:
            return self.refuse(412, "PreconditionFailed")
        headers = {"ETag": f'"{entry.mark}"', "Last-Modified": formatdate(0, usegmt=True)}
        if entry.encryption:
            headers["x-amz-server-side-encryption"] = entry.encryption
        if self.command == "HEAD":
            return self.answer(200, headers={**headers, "Content-Length": str(len(entry.body))})
        return self.send_file(key, entry, headers)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def list_objects(self, bucket: str, query: dict[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        keys = sorted(path.removeprefix(f"{bucket}/") for path in self.server.entries if path.startswith(f"{bucket}/"))
        contents, prefixes = [], set()
        for key in (key for key in keys if key.startswith(prefix)):
            head, slash, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if slash:
                prefixes.add(prefix + head + slash)
                continue
            entry = self.server.entries[f"{bucket}/{key}"]
            contents.append(
                f"<Contents><Key>{escape(quote(key))}</Key><LastModified>1970-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>&quot;{entry.mark}&quot;</ETag><Size>{len(entry.body)}</Size></Contents>"
            )
        found = "".join(f"<CommonPrefixes><Prefix>{quote(each)}</Prefix></CommonPrefixes>" for each in sorted(prefixes))
        return (
            f"<ListBucketResult><Name>{bucket}</Name><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
            f"<KeyCount>{len(contents)}</KeyCount>{''.join(contents)}{found}</ListBucketResult>"
        ).encode()


class HubHandler(StoreHandler):
    """One dataset or model, owner/name: its commit, its tree, its files, which another server's address stands for."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        if match := re.fullmatch(r"/cdn/(.*)", path):
            self.server.signed.add("Authorization" in self.headers)
            entry = self.server.entries[match[1]]
            facts = {"ETag": f'"{entry.mark}"', "X-Repo-Commit": self.server.commit}
            if self.command == "HEAD":
                return self.answer(200, headers={**facts, "Content-Length": str(len(entry.body))})
            return self.send_file(match[1], entry, facts)
        if match := re.fullmatch(rf"(?:/datasets)?/owner/name/resolve/{self.server.commit}/(.*)", path):
            if match[1] not in self.server.entries:
                return self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
            self.server.tokens.add(self.headers.get("Authorization"))
            return self.answer(302, headers={"Location": f"/cdn/{quote(match[1])}"})
        if re.fullmatch(rf"/api/(datasets|models)/owner/name(/revision/(main|{self.server.commit}))?", path):
            facts = {"_id": "1", "id": "owner/name", "sha": self.server.commit, "siblings": [], "tags": []}
            return self.answer(200, json.dumps({**facts, "private": False, "downloads": 0, "likes": 0}).encode())
        if match := re.fullmatch(rf"/api/(?:datasets|models)/owner/name/tree/{self.server.commit}(?:/(.*))?", path):
            return self.send_tree(match[1] or "", "recursive=true" in url.query.lower())
        missing = "RepoNotFound" if "owner/name" not in path else "RevisionNotFound"
        return self.answer(404, headers={"X-Error-Code": missing})

    def send_tree(self, folder: str, recursive: bool) -> None:
        prefix = f"{folder}/" if folder else ""
        found = {}
        for path, entry in self.server.entries.items():
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                name = prefix + "/".join(parts[:depth])
                found[name] = {"type": "directory", "oid": 40 * "0", "size": 0, "path": name}
            found[path] = {"type": "file", "oid": entry.mark, "size": len(entry.body), "path": path}
            if entry.lfs:
                oid = entry.sha256 or hashlib.sha256(entry.body).hexdigest()
                found[path]["lfs"] = {"oid": oid, "size": len(entry.body), "pointerSize": 134}
        if not found:
            return self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
        shown = [each for each in found.values() if recursive or "/" not in each["path"][len(prefix) :]]
        return self.answer(200, json.dumps(shown).encode(), {"Content-Type": "application/json"})


@contextmanager
def serve(handler: type[StoreHandler]) -> Iterator[Store]:
    with Store(handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


BODY = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
PROGRAM = """
{prelude}
import sys
from pathlib import Path
from lmcore.download import fetch
from lmcore.download import stores as remote
from lmcore.download import download as sources
from lmcore.errors import report_errors
fetch.RETRY_DELAYS_SECONDS = (0.0, 0.0)
remote.CHUNK_BYTES = 1 << 16
params = sources.DownloadParams(source="stdlib", path=None, url=sys.argv[1], sha256=None, mix=None)
with report_errors():
    sources.download(params, Path(sys.argv[2]))
"""


def make_params(url: str | None, **values: object) -> DownloadParams:
    none = {"path": None, "url": None, "sha256": None, "mix": None}
    return parse_section(DownloadParams, "download", {"source": "stdlib", **none, "url": url, **values})


def read_manifest(project: Path) -> dict:
    return json.loads((project / "raw/manifest.json").read_text())


def names(project: Path) -> list[str]:
    files = project / "raw/files"
    return sorted(path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file())


def partials(project: Path) -> dict[str, int]:
    """The versions of what waits in the cache, and how much of them there is."""
    cache = project / ".cache/downloads"
    return {path.with_suffix(".version").read_text(): path.stat().st_size for path in cache.glob("*.part")}


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start(url: str, project: Path, prelude: str = "", **options: int) -> subprocess.Popen[str]:
    code = PROGRAM.format(prelude=prelude)
    command = [sys.executable, "-c", code, url, str(project / "raw")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environment, text=True, **{"stdout": -1, "stderr": -1, **options})


def run(url: str, project: Path, prelude: str = "") -> tuple[str, str]:
    with start(url, project, prelude) as process:
        return process.communicate(timeout=120)
