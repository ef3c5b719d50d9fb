"""Runs the train stage in forks of itself: processes that start in a hundredth of a second, to be killed.

    python tests/support/sabotage/nursery.py PROJECT    trains in PROJECT for practice, prints a port, and listens there

A connection is one training. In comes a line of JSON: the project's folder, the file for what it says, and how it is
to be sabotaged (see hook.py; empty: not at all). Out go lines: its process id, then `stopped` each time that it
is, and at last its exit status, -9 if it was killed. The tracker is left out.
"""

import gc
import json
import os
import signal
import socketserver
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import NoReturn

import torch
from hook import sabotage

import stages.train
from lmcore.errors import report_errors
from lmcore.tracking.description import TrackedRun


class Keeper(socketserver.StreamRequestHandler):
    """Itself a process: it waits for the training as only a parent can."""

    def handle(self) -> None:
        request = json.loads(self.rfile.readline())
        child = os.fork()
        if child == 0:
            run_stage(**request)
        self._say(str(child))
        while True:
            _, status = os.waitpid(child, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                self._say(str(os.waitstatus_to_exitcode(status)))
                return
            self._say("stopped")

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\n".encode())


class Nursery(socketserver.ForkingTCPServer):
    """Ends with the process that started it, however that ends."""

    parent = os.getppid()

    def service_actions(self) -> None:
        super().service_actions()
        if os.getppid() != self.parent:
            raise SystemExit


def run_stage(folder: str, output: str, arranged: str) -> NoReturn:
    """What `python -m stages.train` does in `folder`."""
    status = 1
    try:
        os.chdir(folder)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, sys.stdout.fileno())
        os.dup2(descriptor, sys.stderr.fileno())
        # Whoever runs the tests in the background may ignore them, and children inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if arranged:
            sabotage(*arranged.split())
        with report_errors():
            stages.train.main()
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@contextmanager
def leave_untracked(tracked: TrackedRun) -> Iterator[None]:
    yield


def main() -> None:
    torch.set_num_threads(1)
    stages.train.plan_tracking = lambda _settings: leave_untracked
    os.chdir(sys.argv[1])
    with redirect_stdout(sys.stderr):
        stages.train.main()  # loads what is loaded on the way
    assert threading.active_count() == 1, "a fork would lack the other threads, and might wait for what they hold"
    gc.collect()
    gc.freeze()  # what the collector does not touch stays shared
    with Nursery(("127.0.0.1", 0), Keeper) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
