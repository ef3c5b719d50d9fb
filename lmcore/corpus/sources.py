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
from lmcore.errors import DataError, ParameterError
from lmcore.files import named_path, project_root, sha256_file, write_folder, write_json
from lmcore.params import Section

HIDDEN = (".*",)
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
    origin = {"source": params.source, "licence": source.licence, "url": source.url}
    if source.url is None:
        _copy_stdlib(Path(sysconfig.get_path("stdlib")), files)
        return {**origin, "version": f"{platform.python_implementation()} {platform.python_version()}"}
    _fetch_into(files, source.url, source.sha256)
    return {**origin, "version": None}


def _copy_stdlib(root: Path, files: Path) -> None:
    """Copy the running Python's own modules."""
    paths = [path for path in _list_files(root, NOT_STDLIB) if path.suffix == ".py"]
    if not paths:
        raise DataError(f"{root} holds no .py files: this Python has no library sources; set download.path or .url")
    _copy(paths, root, files)


def _copy_own(name: str, files: Path) -> None:
    """Copy the user's file, or every file below the user's folder but hidden ones and links."""
    path = named_path(name)
    if path.is_file():
        root, paths = path.parent, [Path(path.name)]
    elif path.is_dir():
        root, paths = path, _list_files(path, HIDDEN)
    else:
        raise ParameterError(
            f"download.path={name!r}: {path} does not exist; a relative path begins at dvc.yaml's folder"
        )
    if not paths:
        raise DataError(f"download.path={name!r}: no files in {path} (hidden files and symbolic links do not count)")
    _copy(paths, root, files)


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


def _list_files(root: Path, skip: tuple[str, ...]) -> list[Path]:
    """The regular files below `root`, relative to it and sorted, but for names that match a pattern in `skip`.

    Symbolic links are not followed: no loops, and nothing from outside.
    """
    found = []
    for folder, folders, files in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not _matches(name, skip)]
        paths = [Path(folder, name) for name in files if not _matches(name, skip)]
        found += [path.relative_to(root) for path in paths if path.is_file() and not path.is_symlink()]
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
