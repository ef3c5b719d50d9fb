"""One thing that the doctor found, and what tells whether a process that left a trace is still at work."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """What is so; with a `remedy`, a command, what to do about it: worth a thought, or nothing goes on without it."""

    text: str
    remedy: str | None = None
    needs_user: bool = False

    def __str__(self) -> str:
        label = "MEND" if self.needs_user else "note" if self.remedy else "ok"
        return f"{label:4}  {self.text}" + (f"  =>  {self.remedy}" if self.remedy else "")


def read_command(pid: int) -> str | None:
    """The command line of a process that lives, `dvc or another` where the system has no /proc; None if it is dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # it lives, and belongs to somebody else
        pass
    path = Path("/proc", str(pid), "cmdline")
    return path.read_text().replace("\0", " ").strip() if path.exists() else "dvc or another"
