"""A signal just before one of a process's file operations: the test says which, not the machine's speed.

Python reports its operations to audit hooks before it performs them (PEP 578), so the code under test needs no switch
for it. What is arranged is written as

    STOP os.rename step-00000020.json 1    the 1st rename that names such a file
    KILL * * 37                            the 37th operation of any kind
    SHOW * * 0                             no signal: every operation becomes a line on standard error
"""

import itertools
import os
import signal
import sys

OPERATIONS = ("open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")
STANDARD_ERROR = 2


def sabotage(action: str, operation: str, name: str, turn: str) -> None:
    """Arrange it for this process, until its end."""
    counter = itertools.count(1)  # two threads never get the same number

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in OPERATIONS or operation not in ("*", event):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if name != "*" and not any(name in str(argument) for argument in arguments[:2]):
            return
        is_due = next(counter) == int(turn)
        if is_due or action == "SHOW":
            os.write(STANDARD_ERROR, f"sabotage: {action} {event} {arguments[:2]}\n".encode())
        if is_due:
            os.kill(os.getpid(), signal.Signals[f"SIG{action}"])

    sys.addaudithook(hook)
