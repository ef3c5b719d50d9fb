"""Addresses of stores against a real server like S3: listed, fetched, resumed, verified, refused."""

import hashlib
import os
import signal
from collections.abc import Iterator

import pytest
from stores import (
    BODY,
    SHA256,
    Entry,
    S3Handler,
    Store,
    make_params,
    names,
    partials,
    read_manifest,
    run,
    serve,
    start,
    wait_until,
)

from lmcore.download import fetch
from lmcore.download import stores as remote
from lmcore.download.download import download
from lmcore.errors import DataError, ParameterError


@pytest.fixture
def s3(no_credentials: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with serve(S3Handler) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.address)
        yield server


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/x", ["a.txt", "y/b c.txt"]),
        ("s3://bucket/x/", ["a.txt", "y/b c.txt"]),
        ("s3://bucket", ["x/a.txt", "x/y/b c.txt", "xx.md"]),
        ("s3://bucket/x/*.txt", ["a.txt"]),
        ("s3://bucket/x/**", ["a.txt", "y/b c.txt"]),
        ("s3://bucket/*/a.txt", ["x/a.txt"]),
        ("s3://bucket/x/y/b c.txt", ["b c.txt"]),
    ],
)
def test_a_file_a_folder_or_a_pattern(s3, project, url, expected):
    for name in ("x/a.txt", "x/y/b c.txt", "x/.hidden", "x/.git/config", "xx.md"):
        s3.entries[f"bucket/{name}"] = Entry(name.encode())
    s3.entries["bucket/x/"] = Entry(b"")  # how S3's console makes a folder
    metrics = download(make_params(url), project / "raw")
    assert names(project) == expected
    manifest = read_manifest(project)
    for file in manifest["files"]:
        entry = s3.entries[file["url"].removeprefix("s3://")]
        assert (project / "raw/files" / file["path"]).read_bytes() == entry.body
        assert (file["sha256"], file["mark"]) == (hashlib.sha256(entry.body).hexdigest(), entry.mark)
    assert [file["path"] for file in manifest["files"]] == expected
    assert metrics == {"files": len(expected), "bytes": sum(file["bytes"] for file in manifest["files"])}
    assert list((project / ".cache/downloads").iterdir()) == []


@pytest.mark.parametrize("known", [True, False])
def test_credentials_are_used_where_there_are_some(s3, project, monkeypatch, known):
    if known:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    s3.entries["bucket/a.txt"] = Entry(b"text")
    download(make_params("s3://bucket/a.txt"), project / "raw")
    assert s3.signed == {known}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://nobody/x", r"^s3://nobody/x: not there \(.*\): check the address$"),
        ("s3://bucket/x", r"^s3://bucket/x: not there \(.*\): check the address$"),
        ("s3://bucket/*.md", r"^s3://bucket/\*.md: no files there \(hidden ones do not count\)$"),
        ("s3://closed/x", r"^s3://closed/x: no access \(.*\): check the address and your credentials$"),
    ],
)
def test_nothing_there_is_one_line(s3, project, url, message):
    s3.entries["bucket/a.txt"] = Entry(b"text")
    with pytest.raises(DataError, match=message) as caught:
        download(make_params(url), project / "raw")
    assert "\n" not in str(caught.value)
    assert not (project / "raw").exists()


def test_a_store_that_is_down(s3, project, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(
        DataError, match=r"^s3://bucket/x: no answer \(Could not connect .*\), 4 times in a row: check the"
    ):
        download(make_params("s3://bucket/x"), project / "raw")
    assert capsys.readouterr().err.count("; trying again in 0 s") == 3


@pytest.mark.parametrize(
    ("prelude", "url", "remedy"),
    [
        (
            "import sys; sys.modules['s3fs'] = None",
            "s3://b/x",
            r"s3://b/x: the driver for s3:// is not installed: pip inst",
        ),
        (
            "import sys; sys.modules['huggingface_hub'] = None",
            "hf://datasets/o/n",
            "is not installed: pip install -e '.[hf]'",
        ),
        ("", "oci://bucket/x", "the driver for oci:// is not installed: Install ocifs to access OCI Object Storage"),
    ],
)
def test_a_driver_that_is_not_installed_is_named(project, prelude, url, remedy):
    _, errors = run(url, project, prelude)
    assert remedy in errors
    assert len(errors.splitlines()) == 1


def test_killed_for_real_and_resumed(s3, project):
    s3.entries["bucket/a.txt"] = Entry(BODY)
    s3.entries["bucket/b.txt"] = Entry(BODY[::-1], pause=0.3)
    with start("s3://bucket", project) as process:
        wait_until(lambda: partials(project).get(s3.entries["bucket/b.txt"].mark))
        process.send_signal(signal.SIGKILL)
    came = partials(project)
    assert 0 < came[s3.entries["bucket/b.txt"].mark] < len(BODY)
    s3.entries["bucket/b.txt"].pause = 0.0
    s3.requests.clear()
    download(make_params("s3://bucket"), project / "raw")
    assert (project / "raw/files/b.txt").read_bytes() == BODY[::-1]
    first = next(int(range_[6:].split("-")[0]) for path, range_ in s3.requests if path == "b.txt")
    assert first == came[s3.entries["bucket/b.txt"].mark]
    assert not [path for path, _ in s3.requests if path == "a.txt"] or came[s3.entries["bucket/a.txt"].mark] < len(BODY)


def test_what_changed_between_two_trials_is_taken_whole(s3, project, monkeypatch):
    s3.entries["bucket/a.txt"] = Entry(b"old" * 100_000)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(fetch, "sha256_file", lambda _: 1 / 0)
        download(make_params("s3://bucket/a.txt"), project / "raw")
    assert partials(project) == {s3.entries["bucket/a.txt"].mark: 300_000}
    s3.entries["bucket/a.txt"] = Entry(BODY)
    download(make_params("s3://bucket/a.txt"), project / "raw")
    assert (project / "raw/files/a.txt").read_bytes() == BODY


def test_what_changes_while_it_is_read_is_never_glued(s3, project):
    class Requests(list):
        def append(self, request):
            super().append(request)
            if len(self) == 2:
                s3.entries["bucket/a.txt"] = Entry(BODY)

    s3.requests = Requests()
    s3.entries["bucket/a.txt"] = Entry(b"old" * 100_000)
    download(make_params("s3://bucket/a.txt"), project / "raw")
    assert (project / "raw/files/a.txt").read_bytes() == BODY


def test_connections_that_break_go_on_where_they_broke(s3, project):
    s3.entries["bucket/a.txt"] = Entry(BODY, drops=[1 << 16, 100])
    download(make_params("s3://bucket/a.txt"), project / "raw")
    assert (project / "raw/files/a.txt").read_bytes() == BODY


@pytest.mark.parametrize(("etag", "encryption"), [("0" * 32 + "-2", None), ("0" * 32, "aws:kms"), ("", "AES256")])
def test_an_etag_that_is_no_md5_is_a_mark_only(s3, project, etag, encryption):
    s3.entries["bucket/a.txt"] = Entry(BODY, etag=etag, encryption=encryption)
    download(make_params("s3://bucket/a.txt"), project / "raw")
    assert read_manifest(project)["files"][0]["mark"] == s3.entries["bucket/a.txt"].mark


def test_a_wrong_md5_names_both_and_keeps_nothing(s3, project):
    s3.entries["bucket/a.txt"] = Entry(BODY, etag="0" * 32)
    actual = hashlib.md5(BODY).hexdigest()
    with pytest.raises(
        DataError, match=rf"^s3://bucket/a.txt: its md5 is {actual}, the store publishes 0{{32}}: it was"
    ):
        download(make_params("s3://bucket/a.txt"), project / "raw")
    assert partials(project) == {}


def test_a_checksum_of_ones_own_is_for_one_file(s3, project):
    s3.entries |= {"bucket/a.txt": Entry(BODY), "bucket/b.txt": Entry(b"b")}
    download(make_params("s3://bucket/a.txt", sha256=SHA256), project / "raw")
    with pytest.raises(DataError, match=f"its sha256 is {SHA256}, expected {'0' * 64}"):
        download(make_params("s3://bucket/a.txt", sha256="0" * 64), project / "raw")
    with pytest.raises(ParameterError, match=r"belongs to one file, and s3://bucket has 2$"):
        download(make_params("s3://bucket", sha256=SHA256), project / "raw")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a\\..\\evil", "evil\0"])
def test_names_cannot_leave_the_folder(s3, project, name):
    s3.entries |= {"bucket/x/a.txt": Entry(b"a"), f"bucket/x/{name}": Entry(b"evil")}
    message = r"^s3://bucket/x: the name '.*' cannot be a file's here: choose the others by a pattern$"
    with pytest.raises(DataError, match=message):
        download(make_params("s3://bucket/x"), project / "raw")
    assert s3.requests == []
    assert not list(project.rglob("*evil*"))


@pytest.mark.parametrize("name", ["..", ".", "", "a/../b", "a//b", "./a", "a/", "a\nb", "x" * 256, "é" * 130, "\udce9"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(DataError, match=r"the name '.*' cannot be a file's here") as caught:
        remote._check_name("s3://bucket", name)
    assert str(caught.value).isprintable()


def test_a_name_that_is_a_file_and_a_folder(s3, project):
    s3.entries |= {"bucket/x/a": Entry(b"a"), "bucket/x/a/b": Entry(b"b")}
    with pytest.raises(DataError, match=r"^s3://bucket/x: 'a' is a file and a folder there: choose one by a pattern$"):
        download(make_params("s3://bucket/x"), project / "raw")


def test_the_failure_of_one_ends_the_others_which_go_on_next_time(s3, project):
    for name in "abcdefgh":
        s3.entries[f"bucket/{name}.txt"] = Entry(BODY + name.encode(), pause=0.2)
    s3.entries["bucket/c.txt"] = Entry(b"c", etag="0" * 32)
    with pytest.raises(DataError, match=r"^s3://bucket/c.txt: its md5"):
        download(make_params("s3://bucket"), project / "raw")
    came = partials(project)
    assert came, "what had come of the others stays"
    assert all(size < len(BODY) for size in came.values())
    assert s3.entries["bucket/h.txt"].mark not in came, "what had not begun did not begin"
    assert not (project / "raw").exists()
    s3.entries["bucket/c.txt"] = Entry(b"c")
    s3.requests.clear()
    download(make_params("s3://bucket"), project / "raw")
    assert names(project) == [f"{name}.txt" for name in "abcdefgh"]
    again = dict(reversed(s3.requests))
    begins = {s3.entries[f"bucket/{path}"].mark: int(range_[6:].split("-")[0]) for path, range_ in again.items()}
    assert {mark: begins[mark] for mark in came} == came


def test_too_little_room_is_said_before_anything_is_fetched(s3, project, monkeypatch):
    s3.entries |= {"bucket/a.txt": Entry(BODY), "bucket/b.txt": Entry(BODY)}
    usage = fetch.shutil.disk_usage(project)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage._replace(free=500_000))
    with pytest.raises(DataError, match=r"^1 MB are still to come, and .*/downloads has 0 MB free: free some space"):
        download(make_params("s3://bucket"), project / "raw")
    assert s3.requests == []


def test_a_file_in_two_sources_is_refused(s3, project):
    s3.entries["bucket/x/a.txt"] = Entry(b"a")
    params = make_params(None, mix=["s3://bucket/x", "s3://bucket/x/a.txt"])
    with pytest.raises(
        DataError, match=r"^download.mix: s3://bucket/x/a.txt is in two of the sources: leave it out of one$"
    ):
        download(params, project / "raw")


def test_bars_are_for_a_terminal(s3, project):
    s3.entries |= {"bucket/a.txt": Entry(BODY, pause=0.1), "bucket/b.txt": Entry(BODY, pause=0.1)}
    leader, follower = os.openpty()
    with start("s3://bucket", project, stderr=follower) as process:
        os.close(follower)
        shown = b""
        try:
            while chunk := os.read(leader, 1 << 16):
                shown += chunk
        except OSError:  # the last process that had it open has ended
            pass
        process.wait(timeout=120)
    os.close(leader)
    assert all(each in shown for each in (b"a.txt", b"b.txt", b"2 files"))
    output, errors = run("s3://bucket", project)
    assert (output, errors) == ("bucket: 2 files, 1 MB\n", "")
