"""Parameters of the download stage."""

import re
from collections.abc import Sequence
from typing import Annotated, Self
from urllib.parse import unquote, urlsplit

from pydantic import model_validator

from lmcore.download.catalog import CATALOG
from lmcore.download.local import WILDCARDS
from lmcore.download.stores import explain_address
from lmcore.download.web import is_web_address
from lmcore.params import Section, choice

FILE_NAME_CHARACTERS = 60  # of a url's last part; 255 bytes is the most that file systems take


class DownloadParams(Section):
    """Section `download`: several sources (`mix`), or one's own text (`path`), or a `url`, or else a `source`."""

    source: Annotated[str, choice(CATALOG)] = "stdlib"
    path: str | None = None
    url: str | None = None
    sha256: str | None = None
    mix: list[str] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [
            f"download.{key}={value!r}" for key in ("mix", "path", "url") if (value := getattr(self, key)) is not None
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given[:2])}: set one of them, not both")
        if self.path == "":
            raise ValueError("download.path='': must name a file or a folder, or be null")
        if self.sha256 is not None and self.url is None:
            raise ValueError(f"download.sha256={self.sha256!r}: belongs to download.url, which is not set")
        if self.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", self.sha256):
            raise ValueError(f"download.sha256={self.sha256!r}: must be 64 hexadecimal digits")
        if self.url is not None:
            _check_address("download.url", self.url)
        if self.mix is not None:
            self._check_mix(self.mix)
        return self

    def _check_mix(self, mix: Sequence[str]) -> None:
        if not mix:
            raise ValueError("download.mix=[]: must name sources, or be null")
        for at, entry in enumerate(mix):
            if not entry:
                raise ValueError(f"download.mix[{at}]='': must be a source's name, an address or a path")
            if "://" in entry:
                _check_address(f"download.mix[{at}]", entry)
        names = [_short_name(entry).casefold() for entry in mix]
        if twice := next((name for name in names if names.count(name) > 1), None):
            same = ", ".join(entry for entry, name in zip(mix, names, strict=True) if name == twice)
            raise ValueError(f"download.mix: {same} would all be called {twice!r}: rename or leave out all but one")


def _short_name(entry: str) -> str:
    """The last part without wildcards, of characters that are safe in a file's name: `texts/**/*.md` -> texts."""
    if entry in CATALOG:
        return entry
    path = unquote(urlsplit(entry).path) if is_web_address(entry) else entry.partition("://")[2] or entry
    plain = [part for part in path.split("/") if part and not any(character in part for character in WILDCARDS)]
    name = re.sub("[^A-Za-z0-9._-]+", "-", plain[-1] if plain else "").strip("-.")
    return name[-FILE_NAME_CHARACTERS:] or "text"


def _check_address(key: str, url: str) -> None:
    if is_web_address(url):
        return
    if url.startswith(("http://", "https://")) or "://" not in url:
        raise ValueError(f"{key}={url!r}: must be an http:// or https:// address, percent-encoded")
    if problem := explain_address(url):
        raise ValueError(f"{key}={url!r}: {problem}")
