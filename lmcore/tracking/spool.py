"""What lies in runs/KEY for the trackers to read: rows of numbers, appended line by line and never changed."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcore.errors import ArtifactError
from lmcore.files import read_json

METRICS, SYSTEM = "metrics.jsonl", "system.jsonl"
SPOOLS = (METRICS, SYSTEM)
BYTES_AT_ONCE = 1 << 20  # what a tracker is given at once: a long backlog is noted as sent part by part


@dataclass(frozen=True)
class Row:
    """What was measured at one step; `time` in milliseconds since 1970.

    Rows of metrics count the updates of the weights, rows of system metrics themselves.
    """

    step: int
    time: int
    values: Mapping[str, float]


def read_rows(path: Path, begin: int) -> tuple[list[Row], int]:
    """Rows of the whole lines from byte `begin` on, a megabyte of them at most, and the byte after them.

    Training may be at work on the file: a last line without its end is left for the next time.
    """
    if not path.exists():
        return [], begin
    with path.open("rb") as file:
        file.seek(begin)
        content = file.read(BYTES_AT_ONCE)
        if len(content) == BYTES_AT_ONCE and b"\n" not in content:
            content += file.readline()
    content = content[: content.rfind(b"\n") + 1]
    return [parse_row(line, path) for line in content.splitlines()], begin + len(content)


def parse_row(line: bytes, path: Path) -> Row:
    """One line of `path`, as training's log and the sampler of system metrics write it.

    Raises ArtifactError for one that is neither.
    """
    try:
        record = json.loads(line)
        step, machine = record.pop("step"), record.pop("machine")
        return Row(step, machine.pop("time"), {**record, **machine})
    except (ValueError, LookupError, AttributeError, TypeError):
        raise ArtifactError(f"{path} is damaged, it has the line {line[:60]!r}: remove the line") from None


def cut_torn_line(path: Path) -> int:
    """Remove what a kill left of a last line; returns the step that comes next, 0 in an empty or missing file."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    lines = whole.splitlines()
    return parse_row(lines[-1], path).step + 1 if lines else 0


def find_row(path: Path, step: int | None = None) -> Row | None:
    """The row of that step, which a line begins with; without one, the last. None where there is none."""
    if not path.exists():
        return None
    begin = b"{" if step is None else b'{"step": %d,' % step
    found = b""
    with path.open("rb") as file:
        for line in file:
            if line.startswith(begin) and line.endswith(b"\n"):
                found = line
    return parse_row(found, path) if found else None


def read_state(path: Path) -> dict[str, Any]:
    """Return what a tracker has noted of its run in `path`; an empty dictionary where it has not begun one."""
    return read_json(path, "remove it to start a new run there") if path.exists() else {}
