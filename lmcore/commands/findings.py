"""One thing that the doctor found, and what tells whether a process that left a trace is still at work."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What is so; with a `remedy`, a command, what to do about it: worth a thought, or nothing goes on without it."""

    text: str
    remedy: str | None = None
    needs_user: bool = False

    def __str__(self) -> str:
        label = "MEND" if self.needs_user else "note" if self.remedy else "ok"
        return f"{label:4}  {self.text}" + (f"  =>  {self.remedy}" if self.remedy else "")
