"""Raw text as the download stage leaves it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lmcore.files import write_json


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's root in the test's own folder."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def make_raw(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """A raw folder as the download stage leaves it, from its files' names and contents."""

    def make(files: dict[str, bytes]) -> Path:
        raw = tmp_path / "raw"
        for name, content in files.items():
            path = raw / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        write_json(raw / "manifest.json", {"files": [{"source": "own", "path": name} for name in sorted(files)]})
        return raw

    return make
