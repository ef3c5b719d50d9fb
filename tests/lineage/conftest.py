"""A copy of a project whose pipeline has run, to trace in and to damage."""

from pathlib import Path

import pytest
from projects import Project


@pytest.fixture
def project(finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """All is committed and nothing is damaged; it is the current folder."""
    copy = finished.copy(tmp_path / "project")
    monkeypatch.chdir(copy.folder)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return copy
