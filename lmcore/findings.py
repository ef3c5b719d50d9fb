"""One thing that the doctor found, and what tells whether a process that left a trace is still at work."""

from dataclasses import dataclass

import psutil


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
    """The command line of a process that lives, empty where the system does not tell; None if it is dead."""
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.AccessDenied:
        return ""
    except psutil.NoSuchProcess:  # a zombie too, which is at work on nothing
        return None
