"""Files written whole or not at all, fingerprints, seeds, and the project's root."""

import hashlib
import json
import os
import shutil
import tokenize
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lmcore.errors import SYSTEM_REMEDIES, ArtifactError

CHUNK_BYTES = 1 << 20


def project_root() -> Path:
    """The folder that holds dvc.yaml in the user's checkout, from wherever it is called.

    DVC sets DVC_ROOT to the checkout also where a stage runs in a temporary copy (`dvc exp run --temp`, the queue).
    """
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd().resolve()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), here)


def named_path(name: str) -> Path:
    """What a parameter names, from the checkout's root: a stage may run in a copy of the project, far from it."""
    path = Path(name)
    with suppress(RuntimeError):  # the home of an unknown user stays what it is, and does not exist
        path = path.expanduser()
    return project_root() / path


@contextmanager
def write_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` when the block ends well, on disk, and not at all otherwise."""
    with _workplace(path) as new:
        with new.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync(path.parent)


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """An empty folder that becomes `path`, in place of what was there, when the block ends well, and else vanishes."""
    with _workplace(path) as new:
        new.mkdir()
        yield new
        if path.exists():
            path.rename(new.with_name("old"))
        new.rename(path)


def sync(path: Path) -> None:
    """Bring a file, or a folder's names, to the disk: a power cut may take a rename back and keep what came after."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """A free place on the same disk, `.NAME.partial-PID/new`, where `path` may grow; removed at the end.

    What killed processes left there is removed on the way. A full disk is reported with `path`, not with this place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.partial-*"):
        if not _is_other_process(int(stale.suffix.removeprefix(".partial-"))):
            if (stale / "old").exists() and not path.exists():  # killed between the two renames of write_folder
                (stale / "old").rename(path)
            shutil.rmtree(stale)
    workplace = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        workplace.mkdir()
        yield workplace / "new"
    except OSError as error:
        place = error.filename2 or error.filename
        if error.errno in SYSTEM_REMEDIES and (place is None or str(place).startswith(str(workplace))):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _is_other_process(pid: int) -> bool:
    """Whether `pid` is alive and not this process: in a restarted container the killed one had the same number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and belongs to somebody else
        return True
    return pid != os.getpid()


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8, whole or not at all."""
    with write_file(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: object) -> None:
    """`value` as indented JSON, keys in the order given, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, remedy: str) -> Any:
    """The parsed file. Raises ArtifactError naming the path and `remedy` when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path} does not exist: {remedy}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): {remedy}") from None


def save_array(path: Path, array: NDArray[Any]) -> None:
    """A .npy file, whole or not at all; np.save would not tell a full disk from other failures."""
    with write_file(path) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.tobytes())


def read_array_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and the type that a .npy file begins with; `file` is then at its numbers. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    except (tokenize.TokenError, SyntaxError) as error:  # numpy reads the header as Python
        raise ValueError(error) from None
    return shape, dtype


def copy_fast(source: Path, target: Path) -> None:
    """A second name for a file that is not going to be changed, or a copy where the file system has no such."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sha256_file(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_changed(listed: Mapping[str, Mapping[str, Any]], found: Mapping[str, Path]) -> set[str]:
    """Return the names that are new, gone, or of a file with other `bytes` or `sha256` than are listed for it."""
    return (listed.keys() ^ found.keys()) | {
        name
        for name in listed.keys() & found.keys()
        if found[name].stat().st_size != listed[name]["bytes"] or sha256_file(found[name]) != listed[name]["sha256"]
    }


def fingerprint(value: object) -> str:
    """SHA-256 of a JSON value, the same for equal values whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def derive_seed(*parts: int | str) -> int:
    """A seed of its own for every combination of `parts`; sums such as `seed + step` would repeat.

    32 bits, which is all that torch's generator takes in on a CPU.
    """
    return int(fingerprint(parts)[:8], 16)
