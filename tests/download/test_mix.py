"""Several sources in one corpus: what each is called, where its files lie, and how they are listed."""

import pytest
from stores import make_params, names, read_manifest

from lmcore.download.download import download, find_changes
from lmcore.download.params import _short_name
from lmcore.errors import ParameterError


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("stdlib", "stdlib"),
        ("texts", "texts"),
        ("texts/notes.txt", "notes.txt"),
        ("texts/**/*.md", "texts"),
        ("*.md", "text"),
        ("..", "text"),
        ("~/my texts/é", "text"),
        ("~/my texts/", "my-texts"),
        ("http://h/a/b%20c.txt?version=2", "b-c.txt"),
        ("http://h/%2E%2E", "text"),
        ("s3://bucket/*.parquet", "bucket"),
        ("s3://bucket/x/*/y[0-9]", "x"),
        ("hf://datasets/o/n@main/data", "data"),
        ("x" * 300, "x" * 60),
    ],
)
def test_sources_have_short_safe_names(entry, name):
    assert _short_name(entry) == name


def test_several_sources_lie_side_by_side(web, project):
    (project / "texts/notes/notes").mkdir(parents=True)
    (project / "texts/notes/b.txt").write_text("b")
    (project / "texts/notes/notes/a.txt").write_text("a")
    url = web.put("/c.txt", b"ccc")
    params = make_params(None, mix=[url, "texts/notes", "stdlib"])
    metrics = download(params, project / "raw")
    manifest = read_manifest(project)
    assert [source["name"] for source in manifest["sources"]] == ["c.txt", "notes", "stdlib"]
    assert [source["licence"] for source in manifest["sources"]] == [None, None, "PSF-2.0"]
    files = manifest["files"]
    assert [file["path"] for file in files[:3]] == ["c.txt/c.txt", "notes/b.txt", "notes/notes/a.txt"]
    assert list(dict.fromkeys(file["source"] for file in files)) == ["c.txt", "notes", "stdlib"]
    assert [file["path"] for file in files[3:]] == sorted(file["path"] for file in files[3:])
    assert sorted(file["path"] for file in files) == names(project)
    assert metrics == {"files": len(files), "bytes": sum(file["bytes"] for file in files)}
    assert find_changes(project / "raw") == []
    (project / "texts/notes/notes/a.txt").write_text("A")
    (project / "texts/notes/d.txt").write_text("d")
    assert find_changes(project / "raw") == ["notes/d.txt", "notes/notes/a.txt"]


def test_one_source_in_a_mix_lies_as_it_does_alone(project):
    (project / "texts/texts").mkdir(parents=True)
    (project / "texts/texts/a.txt").write_text("a")
    download(make_params(None, path="texts"), project / "alone")
    download(make_params(None, mix=["texts"]), project / "mixed")
    assert (project / "alone/manifest.json").read_bytes() == (project / "mixed/manifest.json").read_bytes()
    assert (project / "mixed/files/texts/a.txt").read_text() == "a"
    (project / "texts/texts/a.txt").write_text("A")
    assert find_changes(project / "mixed") == ["texts/a.txt"]


def test_a_source_of_a_mix_that_is_none_names_its_place(web, project):
    url = web.put("/c.txt", b"ccc")
    with pytest.raises(
        ParameterError, match=r"^download.mix\[1\]='tinyshakespear': .* does not exist.*; did you mean tinyshak"
    ):
        download(make_params(None, mix=[url, "tinyshakespear"]), project / "raw")
    assert web.requests == [], "nothing is fetched before everything is known to be there"
