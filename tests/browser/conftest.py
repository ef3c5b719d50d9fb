"""One browser for the tests of pages."""

from collections.abc import Iterator

import pytest
from chromium import Browser, start_chromium


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with start_chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started
