"""The corpus from the catalogue, from a url and from one's own files, with its manifest."""

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import sysconfig
from pathlib import Path

import pytest

from lmcore.download.catalog import CATALOG
from lmcore.download.download import download, find_changes
from lmcore.download.params import DownloadParams
from lmcore.errors import DataError, ParameterError
from lmcore.params import parse_section


def make_params(**values: object) -> DownloadParams:
    return parse_section(
        DownloadParams,
        "download",
        {"source": "stdlib", "path": None, "url": None, "sha256": None, "mix": None} | values,
    )


def read_manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def list_tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"source": "tinyshakespear"},
            r"^download.source='tinyshakespear': must be 'stdlib', 'own', 'tiny.*, did you mean tinyshakespeare\?$",
        ),
        ({"source": "zzz"}, r"^download.source='zzz': must be 'stdlib', 'own', .* or 'fineweb-edu-10bt'$"),
        ({"path": "a", "url": "http://a/b"}, r"^download.path='a' and download.url='http://a/b': set one of them"),
        ({"path": ""}, r"^download.path='': must name a file or a folder, or be null$"),
        ({"sha256": "0" * 64}, r"^download.sha256='0+': belongs to download.url, which is not set$"),
        ({"url": "http://a/b", "sha256": "0" * 63}, r"^download.sha256='0+': must be 64 hexadecimal digits$"),
        ({"url": "http://a/b", "sha256": "g" * 64}, r"must be 64 hexadecimal digits$"),
        *(
            ({"url": url}, r"^download.url='.*': must be an http:// or https:// address, percent-encoded$")
            for url in (
                "",
                "a.txt",
                "http:///b",
                "http://a/b c",
                "http://a/é",
                "http://a:b/c",
                "http://[::1/c",
                "http://a/b\nc",
            )
        ),
        *(
            (
                {"url": url},
                r"^download.url='.*': must be an address such as https://..., s3://bucket/texts/\*.parquet or",
            )
            for url in (
                "file:///etc/passwd",
                "local://a",
                "memory://a",
                "data://a",
                "nowhere://a/b",
                "S3://a/b",
                "://a",
            )
        ),
        ({"url": "s3:///"}, r"^download.url='s3:///': must name something in the store$"),
        (
            {"url": "zip://*.txt::s3://a/b.zip"},
            r"chained addresses \(a::b\) are not read: fetch the archive and unpack it",
        ),
        ({"mix": []}, r"^download.mix=\[\]: must name sources, or be null$"),
        ({"mix": ["stdlib", ""]}, r"^download.mix\[1\]='': must be a source's name, an address or a path$"),
        ({"mix": ["stdlib", "file:///etc"]}, r"^download.mix\[1\]='file:///etc': must be an address such as"),
        ({"mix": ["stdlib", "http://a b"]}, r"^download.mix\[1\]='http://a b': must be an http:// or https:// address"),
        (
            {"mix": ["stdlib"], "path": "a"},
            r"^download.mix=\['stdlib'\] and download.path='a': set one of them, not both$",
        ),
        ({"mix": ["stdlib"], "url": "http://a/b"}, r"and download.url='http://a/b': set one of them, not both$"),
        (
            {"mix": ["texts/notes", "s3://bucket/Notes/*.txt", "stdlib"]},
            r"^download.mix: texts/notes, s3://bucket/Notes/\*.txt would all be called 'notes': rename or leave",
        ),
        ({"mix": ["stdlib", "./stdlib"]}, "would all be called 'stdlib'"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(ParameterError, match=message):
        make_params(**values)


def test_the_catalogue_is_described():
    for name, source in CATALOG.items():
        assert source.description.endswith(".")
        assert (source.licence is None) == (name == "own")
        assert (source.url is None) == (source.find is not None) == (name in {"stdlib", "own"})
        assert source.sha256 or source.url is None or source.url.startswith("hf://"), "verified by us or by the store"
        make_params(source=name)
        if source.url:
            make_params(url=source.url)


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stdlib") / "raw"
    return folder, download(make_params(), folder)


def test_stdlib_is_the_running_pythons(stdlib):
    folder, metrics = stdlib
    manifest = read_manifest(folder)
    version = f"{platform.python_implementation()} {platform.python_version()}"
    assert manifest["sources"] == [{"name": "stdlib", "licence": "PSF-2.0", "url": None, "version": version}]
    assert {file["source"] for file in manifest["files"]} == {"stdlib"}
    root = Path(sysconfig.get_path("stdlib"))
    assert (folder / "files/json/decoder.py").read_bytes() == (root / "json/decoder.py").read_bytes()
    assert metrics == {"files": len(manifest["files"]), "bytes": sum(file["bytes"] for file in manifest["files"])}
    assert metrics["bytes"] > 5_000_000


def test_stdlib_leaves_out_what_is_not_the_library(stdlib):
    folder, _ = stdlib
    paths = [file["path"] for file in read_manifest(folder)["files"]]
    parts = {part for path in paths for part in path.split("/")}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings"}
    assert all(path.endswith(".py") and "_sysconfigdata" not in path for path in paths)
    assert str(Path.home()) not in (folder / "manifest.json").read_text()


def test_the_manifest_is_the_folder(stdlib):
    folder, _ = stdlib
    files = read_manifest(folder)["files"]
    assert [file["path"] for file in files] == list_tree(folder / "files")
    for file in files[::50]:
        content = (folder / "files" / file["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])


def test_a_second_download_is_identical(tmp_path, stdlib):
    download(make_params(), tmp_path / "raw")
    assert (tmp_path / "raw/manifest.json").read_bytes() == (stdlib[0] / "manifest.json").read_bytes()


def test_a_catalogued_url(web, tmp_path, monkeypatch):
    body = b"First Citizen:\r\nBefore we proceed any further\n"
    url = web.put("/tinyshakespeare/input.txt", body)
    known = dataclasses.replace(CATALOG["tinyshakespeare"], url=url, sha256=hashlib.sha256(body).hexdigest())
    monkeypatch.setitem(CATALOG, "tinyshakespeare", known)
    assert download(make_params(source="tinyshakespeare"), tmp_path / "raw") == {"files": 1, "bytes": len(body)}
    assert (tmp_path / "raw/files/input.txt").read_bytes() == body
    assert read_manifest(tmp_path / "raw") == {
        "sources": [{"name": "tinyshakespeare", "licence": "public domain", "url": url, "version": None}],
        "files": [
            {
                "source": "tinyshakespeare",
                "path": "input.txt",
                "bytes": len(body),
                "sha256": known.sha256,
                "url": url,
            }
        ],
    }
    web.put("/tinyshakespeare/input.txt", b"another text", etag='"two"')
    with pytest.raises(DataError, match=f"expected {known.sha256}"):
        download(make_params(source="tinyshakespeare"), tmp_path / "raw")
    assert (tmp_path / "raw/files/input.txt").read_bytes() == body  # what was there stays


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/input.txt?version=2", "input.txt"),
        ("/a/..%2F..%2Fetc%2Fpasswd", "passwd"),
        ("/a/%2E%2E", "text"),
        ("/", "text"),
        ("/.hidden", "hidden"),
        ("/" + 300 * "x" + ".txt", 56 * "x" + ".txt"),
        ("/%C3%A9.txt", "é.txt"),
    ],
)
def test_a_urls_file_name_stays_in_the_folder(web, tmp_path, path, name):
    download(make_params(url=web.put(path, b"text")), tmp_path / "raw")
    assert list_tree(tmp_path / "raw") == sorted([f"files/{name}", "manifest.json"])
    (source,) = read_manifest(tmp_path / "raw")["sources"]
    assert (source["url"], source["licence"]) == (web.address(path), None)


def test_one_file_of_ones_own(project):
    (project / "mine.txt").write_bytes(b"one\r\ntwo")
    assert download(make_params(path="mine.txt"), project / "raw") == {"files": 1, "bytes": 8}
    assert (project / "raw/files/mine.txt").read_bytes() == b"one\r\ntwo"
    manifest = read_manifest(project / "raw")
    assert manifest["sources"] == [
        {"name": "mine.txt", "licence": None, "url": None, "version": None, "path": "mine.txt"}
    ]


def test_a_folder_of_ones_own(project):
    mine, outside = project / "mine", project / "outside"
    for path in ("b.txt", "a/c.md", "a/.hidden", ".git/config", "a-b.txt"):
        (mine / path).parent.mkdir(parents=True, exist_ok=True)
        (mine / path).write_text(path)
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (mine / "loop").symlink_to(mine)
    (mine / "link").symlink_to(outside)
    (mine / "link.txt").symlink_to(outside / "secret.txt")
    os.mkfifo(mine / "pipe")
    download(make_params(path=str(mine)), project / "raw")
    assert [file["path"] for file in read_manifest(project / "raw")["files"]] == ["a-b.txt", "a/c.md", "b.txt"]
    assert list_tree(project / "raw/files") == ["a-b.txt", "a/c.md", "b.txt"]


def test_data_own_is_taken_from_where_the_stage_runs(project, monkeypatch):
    """A copy of the project has it only if DVC put it there: then DVC has seen what is in it."""
    copy = project / "copy"
    for folder in (project, copy):
        (folder / "data/own/a").mkdir(parents=True)
        (folder / "data/own/.gitkeep").write_text("")
        (folder / "data/own/a.dvc").write_text("outs:\n")
    (project / "data/own/a/b.txt").write_text("here")
    monkeypatch.chdir(project)
    assert download(make_params(source="own"), project / "raw") == {"files": 1, "bytes": 4}
    manifest = read_manifest(project / "raw")
    assert manifest["sources"] == [{"name": "own", "licence": None, "url": None, "version": None}]
    assert [(file["source"], file["path"]) for file in manifest["files"]] == [("own", "a/b.txt")]
    monkeypatch.chdir(copy)
    with pytest.raises(DataError, match=r"^download.source=own: no files in data/own: put .*git add, dvc add"):
        download(make_params(source="own"), copy / "raw")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("mine/*.txt", ["b.txt"]),
        ("mine/**/*.txt", ["a/c.txt", "b.txt"]),
        ("mine/?/c*", ["a/c.md", "a/c.txt"]),
        ("m*/a/*.md", ["mine/a/c.md"]),
        ("mine/[b-c].txt", ["b.txt"]),
        ("mine/**", ["a/c.md", "a/c.txt", "b.txt"]),
    ],
)
def test_a_pattern_chooses_files(project, pattern, names):
    for path in ("b.txt", "a/c.txt", "a/c.md", "a/.hidden.txt"):
        (project / "mine" / path).parent.mkdir(parents=True, exist_ok=True)
        (project / "mine" / path).write_text(path)
    (project / "mine/link.txt").symlink_to(project / "mine/b.txt")
    download(make_params(path=pattern), project / "raw")
    assert [file["path"] for file in read_manifest(project / "raw")["files"]] == names


@pytest.mark.parametrize("pattern", ["a**", "***", "mine/**.txt", "x" * 300, "x" * 300 + "*"])
def test_a_pattern_that_is_none_is_one_line(project, pattern):
    with pytest.raises((ParameterError, DataError), match=r"^download.path='.*': ") as caught:
        download(make_params(path=pattern), project / "raw")
    assert "\n" not in str(caught.value)


def test_the_project_s_own_name_is_no_pattern(project, monkeypatch):
    (project / "p[1]/texts").mkdir(parents=True)
    (project / "p[1]/texts/a.txt").write_text("x")
    monkeypatch.setenv("DVC_ROOT", str(project / "p[1]"))
    assert download(make_params(path="texts/*.txt"), project / "raw") == {"files": 1, "bytes": 1}


def test_links_that_dvc_made_in_data_own_are_followed(project, monkeypatch):
    (project / "cache").write_text("large")
    (project / "data/own").mkdir(parents=True)
    (project / "data/own/big.txt").symlink_to(project / "cache")
    monkeypatch.chdir(project)
    assert download(make_params(source="own"), project / "raw") == {"files": 1, "bytes": 5}
    assert not (project / "raw/files/big.txt").is_symlink()


def test_a_name_with_a_pattern_s_characters_is_a_name(project):
    (project / "a[1].txt").write_text("x")
    download(make_params(path="a[1].txt"), project / "raw")
    assert [file["path"] for file in read_manifest(project / "raw")["files"]] == ["a[1].txt"]


def test_changes_of_ones_own_text_are_found(project):
    (project / "mine").mkdir()
    for name in ("a.txt", "b.txt", "c.txt"):
        (project / "mine" / name).write_text(name)
    download(make_params(path="mine"), project / "raw")
    assert find_changes(project / "raw") == []
    os.utime(project / "mine/a.txt")
    assert find_changes(project / "raw") == []
    (project / "mine/a.txt").write_text("A.txt")
    (project / "mine/b.txt").unlink()
    (project / "mine/d.txt").write_text("new")
    assert find_changes(project / "raw") == ["a.txt", "b.txt", "d.txt"]
    shutil.rmtree(project / "mine")
    assert find_changes(project / "raw") == ["a.txt", "b.txt", "c.txt"]
    download(make_params(), project / "raw")
    assert find_changes(project / "raw") == []


def test_nothing_there(project):
    with pytest.raises(DataError, match=r"^download.path='no/\*\*': no files in .*/no/\*\* \(hidden files"):
        download(make_params(path="no/**"), project / "raw")
    with pytest.raises(
        ParameterError, match=r"^download.path='nowhere': .*/nowhere does not exist; a relative path begin"
    ):
        download(make_params(path="nowhere"), project / "raw")
    (project / "empty").mkdir()
    with pytest.raises(DataError, match=r"^download.path='empty': no files in .*/empty \(hidden files"):
        download(make_params(path="empty"), project / "raw")
    assert not (project / "raw").exists()


def test_a_name_that_is_not_utf8(project):
    (project / "mine").mkdir()
    with open(os.fsencode(project / "mine") + b"/caf\xe9.txt", "wb"):  # noqa: PTH123
        pass
    with pytest.raises(DataError, match=r"caf\\udce9.txt': the file's name is not UTF-8: rename it"):
        download(make_params(path="mine"), project / "raw")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read(project):
    (project / "mine/closed").mkdir(parents=True)
    (project / "mine/closed").chmod(0)
    with pytest.raises(PermissionError):
        download(make_params(path="mine"), project / "raw")
