"""Text that is on this machine already: Python's standard library, data/own, and the user's files."""

import os
import shutil
import sysconfig
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from lmcore.errors import DataError, ParameterError
from lmcore.files import named_path

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


def find_stdlib() -> tuple[Path, list[Path]]:
    """The folder of the running Python's own modules, and those modules below it."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in list_files(root, NOT_STDLIB) if path.suffix == ".py"]
    if not paths:
        raise DataError(f"{root} holds no .py files: this Python has no library sources; set download.path or .url")
    return root, paths


def find_dependency() -> tuple[Path, list[Path]]:
    """The folder that is a dependency of the stage, as it lies here, where DVC has looked at it, and its files."""
    # DVC may have put links to its cache there.
    paths = list_files(OWN_TEXT, (*HIDDEN, "*.dvc"), links=True) if OWN_TEXT.is_dir() else []
    if not paths:
        raise DataError(
            f"download.source=own: no files in {OWN_TEXT}: put your text there; `dvc exp run --temp` and `--queue` see "
            f"what git or DVC keeps (git add, dvc add)"
        )
    return OWN_TEXT, paths


def find_own(name: str, key: str = "download.path") -> tuple[Path, list[Path]]:
    """The folder that the user's `name` begins with, and the files in question below it, but hidden ones and links.

    `name` is a file, a folder or a pattern such as texts/**/*.jsonl, and `key` the parameter that says so. Raises
    ParameterError or DataError if there is nothing.
    """
    path = named_path(name)
    try:
        if path.is_file():
            return path.parent, [Path(path.name)]
        if path.is_dir():
            root, paths = path, list_files(path, HIDDEN)
        elif any(character in name for character in WILDCARDS):
            root, paths = _match(name)
        else:
            raise ParameterError(f"{key}={name!r}: {path} does not exist; a relative path begins at dvc.yaml's folder")
    except (ValueError, OSError) as error:  # a pattern such as a**, a name of a thousand characters
        raise ParameterError(f"{key}={name!r}: {error}") from None
    if not paths:
        raise DataError(f"{key}={name!r}: no files in {path} (hidden files and symbolic links do not count)")
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


def copy_files(root: Path, paths: Iterable[Path], folder: Path) -> None:
    """Copy root/path to folder/path, for every path."""
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise DataError(f"{str(root / path)!a}: the file's name is not UTF-8: rename it") from None
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, folder / path)


def list_files(root: Path, skip: tuple[str, ...], *, links: bool = False) -> list[Path]:
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
