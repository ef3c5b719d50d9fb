"""Hugging Face's datasets against a real server like its hub, in processes of their own."""

import signal
from collections.abc import Iterator

import pytest
from stores import (
    BODY,
    COMMIT,
    SHA256,
    Entry,
    HubHandler,
    Store,
    names,
    partials,
    read_manifest,
    run,
    serve,
    start,
    wait_until,
)

HUB = "hf://datasets/owner/name"


@pytest.fixture
def hub(no_credentials: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Its address is read when huggingface_hub is imported: only for programs that are started."""
    with serve(HubHandler) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def test_hugging_face_at_the_commit_of_its_branch(hub, project, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for name in ("data/train-0.parquet", "data/train-1.parquet", "data/validation-0.parquet", "README.md"):
        hub.entries[name] = Entry(name.encode() * 10, lfs=name != "README.md")
    output, errors = run(f"{HUB}/data/train-*.parquet", project)
    assert (output, errors) == ("data: 2 files, 0 MB\n", "")
    manifest = read_manifest(project)
    (source,) = manifest["sources"]
    assert source == {"name": "data", "licence": None, "url": f"{HUB}/data/train-*.parquet", "version": COMMIT}
    assert [file["path"] for file in manifest["files"]] == ["train-0.parquet", "train-1.parquet"]
    assert all(file["mark"] == file["sha256"] for file in manifest["files"]), "what LFS publishes"
    assert hub.tokens == {"Bearer hf_secret"}
    assert hub.signed == {False}, "the token goes to the hub, and to no server that it redirects to"
    run(f"{HUB}@{COMMIT}", project)
    assert names(project) == sorted(hub.entries)


def test_hugging_face_killed_and_resumed_though_the_branch_went_on(hub, project):
    hub.entries["a.parquet"] = Entry(BODY, pause=0.5)
    with start(HUB, project) as process:
        wait_until(lambda: partials(project).get(SHA256))
        process.send_signal(signal.SIGKILL)
    came = partials(project)[SHA256]
    assert 0 < came < len(BODY)
    hub.entries["a.parquet"].pause = 0.0
    hub.commit = COMMIT[::-1]
    hub.requests.clear()
    assert run(HUB, project)[1] == ""
    assert (project / "raw/files/a.parquet").read_bytes() == BODY
    assert hub.requests == [("a.parquet", f"bytes={came}-")]
    assert read_manifest(project)["sources"][0]["version"] == COMMIT[::-1]


def test_hugging_face_another_text_than_before_is_taken_whole(hub, project):
    hub.entries["a.parquet"] = Entry(b"old" * 100_000, drops=[100_000, 0, 0])
    assert "ended after 100,000 of 300,000 bytes, 3 times in a row: check the address" in run(HUB, project)[1]
    hub.entries["a.parquet"] = Entry(BODY, statuses=[503])
    assert "the server answered 503 Service Unavailable; trying again" in run(HUB, project)[1]
    assert (project / "raw/files/a.parquet").read_bytes() == BODY


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            Entry(BODY, sha256="0" * 64),
            f"its sha256 is {SHA256}, the store publishes {'0' * 64}: it was damaged on the way",
        ),
        (Entry(BODY, statuses=[404]), "the server answered 404 Not Found: check the address"),
        (
            Entry(BODY, statuses=[403]),
            "the server answered 403 Forbidden: check the address and your credentials",
        ),
    ],
)
def test_hugging_face_s_failures_are_one_line(hub, project, entry, message):
    hub.entries["a.parquet"] = entry
    _, errors = run(HUB, project)
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert not (project / "raw").exists()
    assert partials(project) == {}


@pytest.mark.parametrize(
    "url", ["hf://datasets/owner/nobody", f"{HUB}@nowhere/a.txt", f"{HUB}/nothing", "hf://datasets/owner"]
)
def test_hugging_face_nothing_there_is_one_line(hub, project, url):
    hub.entries["a.txt"] = Entry(b"a")
    _, errors = run(url, project)
    assert errors.startswith(f"error: {url}: ")
    assert len(errors.splitlines()) == 1


def test_a_named_corpus_tells_its_size_and_what_to_mind(hub, project):
    hub.entries |= {"data/train-0.parquet": Entry(BODY), "data/validation-0.parquet": Entry(b"v")}
    prelude = """
import dataclasses
from lmcore.download import download as sources
catalogued = sources.CATALOG["wikitext-103"]
sources.CATALOG["wikitext-103"] = dataclasses.replace(catalogued, url="hf://datasets/owner/name/data/train-*.parquet")
make = sources.DownloadParams
sources.DownloadParams = lambda **values: make(**values | {"source": "wikitext-103", "url": None})
"""
    output, errors = run("", project, prelude)
    assert errors == ""
    told, advice = output.splitlines()
    assert told == "wikitext-103: 1 files, 0 MB, about 1,801,350 documents"
    assert advice.endswith("prepare needs prepare.max_rejected_fraction=0.4")
    (source,) = read_manifest(project)["sources"]
    assert (source["name"], source["licence"], source["version"]) == ("wikitext-103", "CC-BY-SA-3.0 and GFDL", COMMIT)
