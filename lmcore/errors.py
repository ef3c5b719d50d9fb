"""What can go wrong through the user's hand, as one clear line each.

    LmcoreError                the value, the rule and the way out, in one line
    +-- ParameterError         a value in params.yaml breaks a rule
    +-- DataError              the text, or what was made of it, cannot be used
    +-- ArtifactError          a file or folder is missing, damaged or belongs to something else
    +-- TrainingError          a number is not finite (lmcore.train.nan_guard)
    +-- LostProcessError       one of several processes died without a word (lmcore.hardware.distributed)

Our own mistakes are asserts and keep their traceback.
"""

import difflib
import errno
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class LmcoreError(Exception):
    """A mistake that the user can mend."""


class ParameterError(LmcoreError):
    """A value in params.yaml breaks a rule; raised before any work."""


class DataError(LmcoreError):
    """The text, or what was made of it, cannot be used; raised while reading it."""


class ArtifactError(LmcoreError):
    """A file or folder is missing, damaged, or belongs to something else; raised on opening it."""


# The operating system's refusals that a user can mend, with the way out.
SYSTEM_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EACCES: "permission denied: change the file's permissions or its owner",
    errno.EROFS: "the file system is read-only: run in a folder that can be written",
    errno.EFBIG: "the file would grow over the system's limit: raise it (ulimit -f)",
}


# Those that pass when somebody frees some space: training goes on meanwhile.
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def report_errors() -> Iterator[None]:
    """Turn a user's mistake into one line on standard error and exit status 1, without a traceback."""
    try:
        yield
        return
    except LmcoreError as error:
        line, status = f"error: {one_line(str(error))}", 1
    except KeyboardInterrupt:
        line, status = "interrupted: run the same command again", 130
    except OSError as error:
        if error.errno not in SYSTEM_REMEDIES:
            raise
        place = error.filename2 or error.filename  # of a copy's two files, the one that was written
        told = f"{one_line(str(place))}: " if place else ""
        line, status = f"error: {told}{SYSTEM_REMEDIES[error.errno]}", 1
    print(line, file=sys.stderr)
    raise SystemExit(status)


def one_line(message: str) -> str:
    """Return the message in one line: names of files may hold line ends, and codes that a terminal obeys."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in message)


def nearest(word: str, known: Iterable[object]) -> str | None:
    """Return the known name that is most like `word`; None if none is like it."""
    # difflib's own cutoff, 0.6, takes `base` for a misspelt `absent`.
    return next(iter(difflib.get_close_matches(word, map(str, known), n=1, cutoff=0.62)), None)


def suggest(word: str, known: Iterable[object], otherwise: str = "") -> str:
    """Return ` did you mean NAME?`, to stand behind a colon or a comma.

    Where no known name is like `word`, return ` OTHERWISE a, b, c` with all of them; without `otherwise`, nothing.
    """
    names = [str(name) for name in known]
    if near := nearest(word, names):
        return f" did you mean {near}?"
    return f" {otherwise} {', '.join(names) or 'none'}" if otherwise else ""


def list_some(names: Sequence[str], shown: int = 3) -> str:
    """Return `a, b, c and 4 more`: the first names, and the number of the others."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown:,} more" if len(names) > shown else "")
