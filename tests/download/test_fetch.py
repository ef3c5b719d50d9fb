"""Downloads against a real server: whole, verified, resumed, refused."""

import ast
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lmcore.download import fetch as fetch_module
from lmcore.download import web as web_module
from lmcore.download.fetch import RemoteFile, fetch_files
from lmcore.download.web import WebFile
from lmcore.errors import DataError

BODY = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


def fetch(url, sha256, target, cache):
    with fetch_files([RemoteFile(url=url, origin=WebFile(url), sha256=sha256)], cache) as (arrival,):
        arrival.path.rename(target)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / ".cache" / "downloads"


def test_brings_the_bytes_and_leaves_nothing_behind(web, tmp_path, cache):
    fetch(web.put("/a.txt", BODY), SHA256.upper(), tmp_path / "a.txt", cache)
    assert (tmp_path / "a.txt").read_bytes() == BODY
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("body", [b"", b"x"])
def test_tiny_files(web, tmp_path, cache, body):
    fetch(web.put("/a.txt", body), None, tmp_path / "a.txt", cache)
    assert (tmp_path / "a.txt").read_bytes() == body


def test_no_length_told(web, tmp_path, cache):
    fetch(web.put("/a.txt", BODY, has_length=False), SHA256, tmp_path / "a.txt", cache)
    assert (tmp_path / "a.txt").read_bytes() == BODY


def test_broken_connections_are_resumed_where_they_broke(web, tmp_path, cache):
    url = web.put("/a.txt", BODY, drops=[100_000, 100_000, 0])
    fetch(url, None, tmp_path / "a.txt", cache)
    assert (tmp_path / "a.txt").read_bytes() == BODY
    assert web.requests == [("/a.txt", range_) for range_ in (None, "bytes=100000-", "bytes=200000-", "bytes=200000-")]


def test_a_server_without_ranges_starts_over(web, tmp_path, cache):
    fetch(web.put("/a.txt", BODY, drops=[100_000], ranges=False), SHA256, tmp_path / "a.txt", cache)
    assert (tmp_path / "a.txt").read_bytes() == BODY


def test_without_version_or_checksum_nothing_is_glued(web, tmp_path, cache):
    fetch(web.put("/a.txt", BODY, drops=[100_000], etag=None), None, tmp_path / "a.txt", cache)
    assert (tmp_path / "a.txt").read_bytes() == BODY
    assert web.requests == [("/a.txt", None), ("/a.txt", None)]


def test_without_version_a_checksum_allows_to_resume(web, tmp_path, cache):
    fetch(web.put("/a.txt", BODY, drops=[100_000], etag=None), SHA256, tmp_path / "a.txt", cache)
    assert web.requests[1] == ("/a.txt", "bytes=100000-")


def test_a_new_version_on_the_server_is_taken_whole(web, tmp_path, cache):
    url = web.put("/a.txt", b"old" * 100_000, drops=[100_000] + [0] * 9)
    with pytest.raises(DataError, match=r"ended after 100,000 of 300,000 bytes, 4 times in a row: check the address"):
        fetch(url, None, tmp_path / "a.txt", cache)
    web.put("/a.txt", BODY, etag='"two"')
    fetch(url, None, tmp_path / "a.txt", cache)
    assert (tmp_path / "a.txt").read_bytes() == BODY


def test_another_part_than_asked_starts_over(web, tmp_path, cache):
    fetch(web.put("/a.txt", BODY, drops=[100_000], shift=5), None, tmp_path / "a.txt", cache)
    assert (tmp_path / "a.txt").read_bytes() == BODY


def test_killed_after_the_last_byte(web, tmp_path, cache, monkeypatch):
    url = web.put("/a.txt", BODY)

    def interrupt(_: Path) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetch_module, "sha256_file", interrupt)
        fetch(url, SHA256, tmp_path / "a.txt", cache)
    fetch(url, SHA256, tmp_path / "a.txt", cache)
    assert (tmp_path / "a.txt").read_bytes() == BODY
    assert web.requests[1:] == [("/a.txt", "bytes=300000-")]


def test_a_wrong_checksum_names_both_and_keeps_nothing(web, tmp_path, cache):
    url, wrong = web.put("/a.txt", BODY), "0" * 64
    with pytest.raises(DataError, match=f"/a.txt: its sha256 is {SHA256}, expected {wrong}: it was damaged"):
        fetch(url, wrong, tmp_path / "a.txt", cache)
    assert not (tmp_path / "a.txt").exists()
    assert list(cache.iterdir()) == []


def test_a_refusal_is_final(web, tmp_path, cache):
    url = web.put("/a.txt", BODY).replace("a.txt", "b.txt")
    with pytest.raises(DataError, match=r"/b\.txt: the server answered 404 Not Found: check the address"):
        fetch(url, None, tmp_path / "a.txt", cache)
    assert len(web.requests) == 1


def test_a_server_in_trouble_is_asked_again(web, tmp_path, cache, capsys):
    fetch(web.put("/a.txt", BODY, statuses=[503, 429]), SHA256, tmp_path / "a.txt", cache)
    assert (tmp_path / "a.txt").read_bytes() == BODY
    assert "the server answered 503 Service Unavailable; trying again in 0 s" in capsys.readouterr().err


def test_nobody_there(web, tmp_path, cache):
    url = web.put("/a.txt", BODY)
    web.server_close()
    with pytest.raises(
        DataError, match=r"no connection \(.*refused\), 4 times in a row: check the address and the net"
    ):
        fetch(url.replace(str(web.server_port), "1"), None, tmp_path / "a.txt", cache)


def test_a_host_with_an_empty_part(tmp_path, cache):
    with pytest.raises(DataError, match="no connection"):
        fetch("http://a..b/a.txt", None, tmp_path / "a.txt", cache)


def test_a_silent_server_is_given_up(web, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(web_module, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(fetch_module, "RETRY_DELAYS_SECONDS", (0.0,))
    with pytest.raises(DataError, match=r"the connection broke \(timed out\), 2 times in a row"):
        fetch(web.put("/a.txt", BODY, pause=2.0), None, tmp_path / "a.txt", cache)


def run_apart(url: str, sha256: str | None, target: Path, cache: Path, prelude: str = "") -> subprocess.Popen[str]:
    """The same fetch in a process of its own."""
    code = f"""{prelude}
from pathlib import Path
from lmcore.download.fetch import RemoteFile, fetch_files
from lmcore.download.web import WebFile
from lmcore.errors import report_errors
file = RemoteFile(url={url!r}, origin=WebFile({url!r}), sha256={sha256!r})
with report_errors(), fetch_files([file], Path({str(cache)!r})) as (arrival,):
    arrival.path.rename({str(target)!r})
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)


def test_killed_for_real_and_resumed(web, tmp_path, cache):
    url = web.put("/a.txt", BODY, pause=2.0)
    with run_apart(url, SHA256, tmp_path / "a.txt", cache) as process:
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size for path in cache.glob("*.part")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    (partial,) = cache.glob("*.part")
    came = partial.stat().st_size
    assert 0 < came < len(BODY)
    web.pages["/a.txt"].pause = 0.0
    fetch(url, SHA256, tmp_path / "a.txt", cache)
    assert (tmp_path / "a.txt").read_bytes() == BODY
    assert web.requests == [("/a.txt", None), ("/a.txt", f"bytes={came}-")]


def test_two_at_once_take_turns(web, tmp_path, cache):
    url = web.put("/a.txt", BODY, pause=0.02)
    names = ["a.txt", "b.txt"]
    threads = [threading.Thread(target=fetch, args=(url, SHA256, tmp_path / name, cache)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(tmp_path / name).read_bytes() == BODY for name in names] == [True, True]


def test_a_file_that_does_not_fit_is_one_line(web, tmp_path, cache):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    with run_apart(web.put("/a.txt", BODY), None, tmp_path / "a.txt", cache, limit) as process:
        _, errors = process.communicate(timeout=120)
    assert errors == f"error: {cache}: the file would grow over the system's limit: raise it (ulimit -f)\n"
    assert process.returncode == 1


# On a file system of 1 MB; the first server does not say how much is to come.
FILLED = """
import sys
from pathlib import Path
from lmcore.download.fetch import RemoteFile, fetch_files
from lmcore.download.web import WebFile
from lmcore.errors import report_errors

place = Path(sys.argv[1])
for url in sys.argv[2:]:
    try:
        with report_errors(), fetch_files([RemoteFile(url=url, origin=WebFile(url))], place):
            pass
    except SystemExit:
        print(sorted((path.suffix, path.stat().st_size) for path in place.iterdir()))
"""


def test_a_full_disk_is_one_line_and_what_came_stays(web, tmp_path):
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    private = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*private, mount], capture_output=True, check=False).returncode
    ):
        pytest.skip("file systems cannot be mounted here")
    large = BODY * 10
    urls = [web.put("/told.txt", large), web.put("/untold.txt", large, has_length=False)]
    program = [*private, f'{mount} && exec "$@"', "sh", sys.executable, "-c", FILLED, str(tmp_path), *urls]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    told, untold = result.stderr.splitlines()
    assert told == f"error: 3 MB are still to come, and {tmp_path} has 1 MB free: free some space, or choose less text"
    assert untold == f"error: {tmp_path}: the disk is full: free some space and run the same command again"
    first, second = map(ast.literal_eval, result.stdout.splitlines())
    assert [suffix for suffix, _ in first] == [".version"]
    assert dict(second)[".part"] > 500_000
