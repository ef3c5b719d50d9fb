"""The executor that params.yaml asks for."""

from pathlib import Path

import pytest

from lmcore.errors import ParameterError
from lmcore.runtime.executor import open_executor
from lmcore.runtime.process_pool import count_cores


@pytest.mark.parametrize(("workers", "expected"), [("auto", count_cores()), ("3", 3), ("1e0", 1)])
def test_workers_are_those_asked_for(tmp_path: Path, workers: str, expected: int) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"hardware: {{workers: {workers}, data_engine: local, profile: not looked at}}")
    with open_executor(path) as executor:
        assert executor.workers == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{workers: 0, data_engine: local}", r"^hardware\.workers=0: must be 'auto' or greater than or equal to 1$"),
        ("{workers: many, data_engine: local}", r"^hardware\.workers='many': must be 'auto' or a whole number$"),
        ("{workers: 1, data_engine: rye}", r"^hardware\.data_engine='rye': must be 'local' or 'ray', did you mean ray"),
        ("{data_engine: local}", r"^hardware\.workers is missing: write it"),
        ("3", r"^hardware=3: must be a section with the keys workers, data_engine$"),
        ("", r"^hardware is empty: must be a section with the keys workers, data_engine$"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"hardware: {text}")
    with pytest.raises(ParameterError, match=message):
        open_executor(path)
