"""The corpora that go by a name: where each comes from, its checksum and its licence."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Source:
    """One named corpus. Without a url its text is on this machine already."""

    description: str
    licence: str | None  # None: the user knows
    url: str | None = None
    sha256: str | None = None
    bytes: int | None = None


CATALOG = {
    "stdlib": Source(
        description="The source files of the running Python's standard library, about 11 MB in 600 files.",
        licence="PSF-2.0",
    ),
    "own": Source(description="The files that you put into data/own.", licence=None),
    "tinyshakespeare": Source(
        description="Forty thousand lines from Shakespeare's plays in one text, as Karpathy's char-rnn published them.",
        licence="public domain",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        bytes=1_115_394,
    ),
}
