"""Where the text comes from: the catalogue, addresses, and one's own files, as published, together and listed."""

import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from lmcore.download.catalog import CATALOG, Source
from lmcore.download.fetch import Arrival, RemoteFile, fetch_files
from lmcore.download.local import copy_files, find_own
from lmcore.download.params import FILE_NAME_CHARACTERS, DownloadParams, _short_name
from lmcore.download.stores import list_files
from lmcore.download.web import WebFile, is_web_address
from lmcore.errors import DataError, LmcoreError, ParameterError, suggest
from lmcore.files import find_changed, project_root, read_json, sha256_file, write_folder, write_json
from lmcore.runtime.progress import say


@dataclass(frozen=True)
class Gathered:
    """One source: what the manifest says of it, and its files, those on this machine and those to fetch, by name."""

    entry: dict[str, Any]
    root: Path = Path()
    paths: list[Path] = field(default_factory=list)
    remote: Mapping[str, RemoteFile] = field(default_factory=dict)


def download(params: DownloadParams, folder: Path) -> dict[str, int]:
    """Make `folder`: the text as published under files/, and manifest.json with its origins and every file's sha256.

    Several sources lie in files/NAME each. Returns the metrics files and bytes. Raises LmcoreError when the text is not
    to be had.
    """
    gathered = _gather(params)
    wanted = [file for source in gathered for file in source.remote.values()]
    urls = [file.url for file in wanted]
    if twice := next((url for url, count in Counter(urls).items() if count > 1), None):
        raise DataError(f"download.mix: {twice} is in two of the sources: leave it out of one")
    cache = project_root() / ".cache" / "downloads"
    with fetch_files(wanted, cache) as came, write_folder(folder) as new:
        arrivals = dict(zip(urls, came, strict=True))
        places = [new / "files" / (source.entry["name"] if len(gathered) > 1 else "") for source in gathered]
        for source, place in zip(gathered, places, strict=True):
            place.mkdir(parents=True)
            copy_files(source.root, source.paths, place)
        files = [
            entry
            for source, place in zip(gathered, places, strict=True)
            for entry in _settle(source, place, new / "files", arrivals)
        ]
        write_json(new / "manifest.json", {"sources": [source.entry for source in gathered], "files": files})
    return {"files": len(files), "bytes": sum(entry["bytes"] for entry in files)}


def _settle(source: Gathered, place: Path, files: Path, arrivals: Mapping[str, Arrival]) -> list[dict[str, Any]]:
    """Move what has come for a source to `place`. Returns the manifest's entries of its files, below `files`."""
    entries = []
    for name in sorted({path.as_posix() for path in source.paths} | source.remote.keys()):
        path = place / name
        entry: dict[str, Any] = {"source": source.entry["name"], "path": path.relative_to(files).as_posix()}
        if file := source.remote.get(name):
            arrival = arrivals[file.url]
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(arrival.path, path)
            entry |= {"bytes": arrival.bytes, "sha256": arrival.sha256, "url": file.url}
            # A web server's mark may be another on its next machine; a store's is of the file.
            if not is_web_address(file.url):
                entry["mark"] = arrival.mark
        else:
            entry |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        entries.append(entry)
    return entries


def _gather(params: DownloadParams) -> list[Gathered]:
    """What the parameters name, looked up but not fetched."""
    if params.path is not None:
        return [_gather_own(params.path, "download.path")]
    if params.mix is None:
        return [_gather_entry(params.url or params.source, params.sha256)]
    return [
        _gather_entry(entry, None) if entry in CATALOG or "://" in entry else _gather_own(entry, f"download.mix[{at}]")
        for at, entry in enumerate(params.mix)
    ]


def _gather_own(name: str, key: str) -> Gathered:
    try:
        root, paths = find_own(name, key)
    except ParameterError as error:
        if key != "download.path" and (hint := suggest(name, CATALOG)):
            raise ParameterError(f"{error};{hint} known sources: {', '.join(CATALOG)}") from None
        raise
    return Gathered(
        {"name": _short_name(name), "licence": None, "url": None, "version": None, "path": name}, root, paths
    )


def _gather_entry(name: str, sha256: str | None) -> Gathered:
    """What an entry of the catalogue names, or what lies at an address; of a store's it says how much that is."""
    source = CATALOG.get(name) or Source(description="", licence=None, url=name, sha256=sha256)
    entry = {"name": _short_name(name), "licence": source.licence, "url": source.url, "version": source.version}
    if source.find is not None:
        return Gathered(entry, *source.find())
    assert source.url is not None, name
    url, sha256 = source.url, source.sha256
    if is_web_address(url):
        part = PurePosixPath(unquote(urlsplit(url).path)).name
        file_name = re.sub(r"[\x00-\x1f\\]", "", part).lstrip(".")[-FILE_NAME_CHARACTERS:] or "text"
        files = {file_name: RemoteFile(url=url, origin=WebFile(url), bytes=source.bytes, sha256=sha256)}
    else:
        listed, entry["version"] = list_files(url)
        if sha256 is not None and len(listed) > 1:
            raise ParameterError(f"download.sha256={sha256!r}: belongs to one file, and {url} has {len(listed):,}")
        files = {path: replace(file, sha256=sha256) for path, file in listed.items()}
        size = sum(file.bytes or 0 for file in files.values())
        documents = f", about {source.documents:,} documents" if source.documents else ""
        say(f"{entry['name']}: {len(files):,} files, {size / 1e6:,.0f} MB{documents}")
    if source.advice:
        say(f"{name}: {source.advice}")
    return Gathered(entry, remote=files)


def find_changes(raw: Path) -> list[str]:
    """The user's files that are no longer what the manifest in `raw` lists: changed, new and gone, sorted."""
    manifest = read_json(raw / "manifest.json", "run the download stage (dvc repro download)")
    changes: set[str] = set()
    for source in manifest.get("sources", ()):  # one of an older version has none, and is made anew by the next repro
        if "path" not in source:
            continue
        listed = {entry["path"]: entry for entry in manifest["files"] if entry["source"] == source["name"]}
        prefix = f"{source['name']}/" if len(manifest["sources"]) > 1 else ""
        try:
            root, paths = find_own(source["path"])
        except LmcoreError:
            root, paths = Path(), []
        changes |= find_changed(listed, {f"{prefix}{path.as_posix()}": root / path for path in paths})
    return sorted(changes)
