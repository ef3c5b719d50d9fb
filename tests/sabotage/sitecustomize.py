"""On PYTHONPATH, with SABOTAGE set: a chosen process gets a signal just before one of its file operations.

Python reports its operations to audit hooks before it performs them (PEP 578), so a kill falls where the test says,
however fast or slow the machine is, and the code under test needs no switch for it.

    SABOTAGE="stages.train STOP os.rename step-00000020.json 1"    the 1st rename that names such a file
    SABOTAGE="stages.train KILL * / 37"                            the 37th operation of any kind
"""

import os
import signal
import sys

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def sabotage(module: str, signal_name: str, operation: str, name: str, turn: str) -> None:
    """Arrange for the signal, if this process runs `module`."""
    if module not in sys.orig_argv:
        return
    left = int(turn)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event not in OPERATIONS or (operation not in ("*", event)):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if any(name in str(argument) for argument in arguments[:2]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.Signals[f"SIG{signal_name}"])

    sys.addaudithook(hook)


if "SABOTAGE" in os.environ:
    sabotage(*os.environ["SABOTAGE"].split())
