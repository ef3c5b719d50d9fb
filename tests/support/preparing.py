"""The prepare stage on a small corpus, for the tests."""

from pathlib import Path
from typing import Any

from lmcore.params import parse_section
from lmcore.prepare.documents import iterate_named_texts
from lmcore.prepare.params import PrepareParams
from lmcore.prepare.prepare import prepare
from lmcore.runtime.process_pool import Processes


def make_params(**values: object) -> PrepareParams:
    defaults = {
        "text_field": "text",
        "separator": None,
        "split": "tail",
        "validation_fraction": 0.5,
        "min_characters": 1,
        "max_characters": None,
        "max_rejected_fraction": 1.0,
        "max_leakage": None,
        "contamination": None,
        "unicode": "as_is",
        "newlines": "as_is",
        "quality": "none",
        "near_duplicates": None,
    }
    return parse_section(PrepareParams, "prepare", defaults | values)


def run(params: PrepareParams, raw: Path, folder: Path, workers: int = 1) -> tuple[dict[str, Any], dict[int, int]]:
    with Processes(workers) as executor:
        return prepare(params, raw, folder, scratch=raw.parent / "scratch", executor=executor)


def read_split(folder: Path) -> dict[str, str]:
    return {name: text for some in iterate_named_texts(folder) for name, text in some}


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
