"""What can go wrong through the user's hand, as one clear line each.

    LmcoreError                the value, the rule and the way out, in one line
    +-- ParameterError         a value in params.yaml breaks a rule
    +-- DataError              the text, or what was made of it, cannot be used
    +-- ArtifactError          a file or folder is missing, damaged or belongs to something else
    +-- TrainingError          a number is not finite (lmcore.train.nan_guard)
    +-- LostProcessError       one of several processes died without a word (lmcore.hardware.distributed)

Our own mistakes are asserts and keep their traceback.
"""

import errno
import sys
from collections.abc import Iterator
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
    except LmcoreError as error:
        print(f"error: {flatten(str(error))}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted: run the same command again", file=sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:
        if error.errno not in SYSTEM_REMEDIES:
            raise
        place = error.filename2 or error.filename  # of a copy's two files, the one that was written
        remedy = SYSTEM_REMEDIES[error.errno]
        print(f"error: {flatten(str(place))}: {remedy}" if place else f"error: {remedy}", file=sys.stderr)
        raise SystemExit(1) from None


def flatten(message: str) -> str:
    """The message in one line: names of files may hold line ends, and codes that a terminal obeys."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in message)
