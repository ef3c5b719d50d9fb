"""Where the text comes from: the catalogue, a url, or one's own files, copied as published and listed."""

import difflib
import os
import platform
import re
import shutil
import sysconfig
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, Self
from urllib.parse import unquote, urlsplit

from pydantic import model_validator

from lmcore.corpus.catalog import CATALOG
from lmcore.corpus.fetch import fetch
from lmcore.errors import DataError, LmcoreError, ParameterError
from lmcore.files import named_path, project_root, read_json, sha256_file, write_folder, write_json
from lmcore.params import Section

HIDDEN = (".*",)
WILDCARDS = "*?["
OWN_TEXT = Path("data/own")
# Tests and installed packages are not the library; encodings/ holds code tables that are near copies of each other;
# _sysconfigdata and config-* differ from machine to machine.
NOT_STDLIB = (
    *HIDDEN,
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings"),
    *("_sysconfigdata*", "config-*"),
)
FILE_NAME_CHARACTERS = 60  # of a url's last part; 255 bytes is the most that file systems take


class DownloadParams(Section):
    """Section `download`: one's own text (`path`), or a `url`, or else a `source` from the catalogue."""

    source: str
    path: str | None
    url: str | None
    sha256: str | None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source not in CATALOG:
            near = difflib.get_close_matches(self.source, CATALOG, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"download.source={self.source!r}: {hint}known sources: {', '.join(CATALOG)}")
        if self.path is not None and self.url is not None:
            raise ValueError(f"download.path={self.path!r} and download.url={self.url!r}: set one of them, not both")
        if self.path == "":
            raise ValueError("download.path='': must name a file or a folder, or be null")
        if self.sha256 is not None and self.url is None:
            raise ValueError(f"download.sha256={self.sha256!r}: belongs to download.url, which is not set")
        if self.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", self.sha256):
            raise ValueError(f"download.sha256={self.sha256!r}: must be 64 hexadecimal digits")
        if self.url is not None and not _is_web_address(self.url):
            raise ValueError(f"download.url={self.url!r}: must be an http:// or https:// address, percent-encoded")
        return self


def download(params: DownloadParams, folder: Path) -> dict[str, int]:
    """Make `folder`: the text as published under files/, and manifest.json with its origin and every file's sha256.

    Returns the metrics files and bytes. Raises ParameterError or DataError when the text is not to be had.
    """
    with write_folder(folder) as partial:
        files = partial / "files"
        files.mkdir()
        origin = _gather(params, files)
        entries: list[dict[str, Any]] = [
            {"path": path.as_posix(), "bytes": (files / path).stat().st_size, "sha256": sha256_file(files / path)}
            for path in _list_files(files, skip=())
        ]
        write_json(partial / "manifest.json", {**origin, "files": entries})
    return {"files": len(entries), "bytes": sum(entry["bytes"] for entry in entries)}


def _gather(params: DownloadParams, files: Path) -> dict[str, Any]:
    """Fill `files` from the origin that `params` chooses. Returns what the manifest says about that origin."""
    if params.path is not None:
        _copy_own(params.path, files)
        return {"source": "path", "path": params.path, "licence": None, "url": None, "version": None}
    if params.url is not None:
        _fetch_into(files, params.url, params.sha256)
        return {"source": "url", "licence": None, "url": params.url, "version": None}
    source = CATALOG[params.source]
    origin = {"source": params.source, "licence": source.licence, "url": source.url, "version": None}
    if params.source == "stdlib":
        _copy_stdlib(Path(sysconfig.get_path("stdlib")), files)
        origin["version"] = f"{platform.python_implementation()} {platform.python_version()}"
    elif params.source == "own":
        _copy_dependency(OWN_TEXT, files)
    else:
        assert source.url is not None, params.source
        _fetch_into(files, source.url, source.sha256)
    return origin


def _copy_stdlib(root: Path, files: Path) -> None:
    """Copy the running Python's own modules."""
    paths = [path for path in _list_files(root, NOT_STDLIB) if path.suffix == ".py"]
    if not paths:
        raise DataError(f"{root} holds no .py files: this Python has no library sources; set download.path or .url")
    _copy(paths, root, files)


def _copy_dependency(folder: Path, files: Path) -> None:
    """Copy the folder that is a dependency of the stage: as it lies here, where DVC has looked at it."""
    # DVC may have put links to its cache there.
    paths = _list_files(folder, (*HIDDEN, "*.dvc"), links=True) if folder.is_dir() else []
    if not paths:
        raise DataError(
            f"download.source=own: no files in {folder}: put your text there; `dvc exp run --temp` and `--queue` see "
            f"what git or DVC keeps (git add, dvc add)"
        )
    _copy(paths, folder, files)


def _copy_own(name: str, files: Path) -> None:
    """Copy the user's file, or every file below the user's folder, or that the pattern names."""
    root, paths = find_own(name)
    _copy(paths, root, files)


def find_own(name: str) -> tuple[Path, list[Path]]:
    """The folder that `download.path` begins with, and the files in question below it, but hidden ones and links.

    `name` is a file, a folder or a pattern such as texts/**/*.jsonl. Raises ParameterError or DataError if there is
    nothing.
    """
    path = named_path(name)
    try:
        if path.is_file():
            return path.parent, [Path(path.name)]
        if path.is_dir():
            root, paths = path, _list_files(path, HIDDEN)
        elif any(character in name for character in WILDCARDS):
            root, paths = _match(name)
        else:
            raise ParameterError(
                f"download.path={name!r}: {path} does not exist; a relative path begins at dvc.yaml's folder"
            )
    except (ValueError, OSError) as error:  # a pattern such as a**, a name of a thousand characters
        raise ParameterError(f"download.path={name!r}: {error}") from None
    if not paths:
        raise DataError(f"download.path={name!r}: no files in {path} (hidden files and symbolic links do not count)")
    return root, paths


def _match(pattern: str) -> tuple[Path, list[Path]]:
    """The folder before the first wildcard, and the files below it that match; `texts/**` is everything in texts."""
    parts = Path(pattern).parts
    first = next(at for at, part in enumerate(parts) if any(character in part for character in WILDCARDS))
    root = named_path(str(Path(*parts[:first])))
    rest = [*parts[first:], "*"] if parts[-1] == "**" else parts[first:]
    found = {path.relative_to(root) for path in root.glob("/".join(rest)) if path.is_file() and not path.is_symlink()}
    shown = [path for path in found if not any(_matches(part, HIDDEN) for part in path.parts)]
    return root, sorted(shown, key=Path.as_posix)


def find_changes(raw: Path) -> list[str]:
    """The user's files that are no longer what the manifest in `raw` lists: changed, new and gone, sorted."""
    manifest = read_json(raw / "manifest.json", "run the download stage (dvc repro download)")
    if manifest["source"] != "path":
        return []
    listed = {entry["path"]: (entry["bytes"], entry["sha256"]) for entry in manifest["files"]}
    try:
        root, paths = find_own(manifest["path"])
    except LmcoreError:
        return sorted(listed)
    found = {path.as_posix(): (root / path).stat().st_size for path in paths}
    changed = {
        name
        for name in listed.keys() & found.keys()
        if found[name] != listed[name][0] or sha256_file(root / name) != listed[name][1]
    }
    return sorted(changed | (listed.keys() ^ found.keys()))


def _fetch_into(files: Path, url: str, sha256: str | None) -> None:
    """Download one file, under the last part of its address: .../data/input.txt -> input.txt."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name.lstrip(".").replace("\0", "")[-FILE_NAME_CHARACTERS:]
    fetch(url, sha256, files / (name or "text"), project_root() / ".cache" / "downloads")


def _copy(paths: list[Path], root: Path, files: Path) -> None:
    """Copy root/path to files/path, for every path."""
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise DataError(f"{str(root / path)!a}: the file's name is not UTF-8: rename it") from None
        (files / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, files / path)


def _list_files(root: Path, skip: tuple[str, ...], *, links: bool = False) -> list[Path]:
    """The regular files below `root`, relative to it and sorted, but for names that match a pattern in `skip`.

    Symbolic links to folders are not followed, and those to files only where `links` says so: no loops, and nothing
    from outside.
    """
    found = []
    for folder, folders, files in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not _matches(name, skip)]
        paths = [Path(folder, name) for name in files if not _matches(name, skip)]
        found += [path.relative_to(root) for path in paths if path.is_file() and (links or not path.is_symlink())]
    return sorted(found, key=Path.as_posix)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _raise(error: OSError) -> NoReturn:
    """os.walk passes over folders that it cannot read, unless told otherwise."""
    raise error


def _is_web_address(url: str) -> bool:
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
