"""Signals are noted, handlers come back, and what is ignored stays ignored."""

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from lmcore.hardware.distributed import follow_parent
from lmcore.hardware.signals import SAME_SIGNAL_SECONDS, SIGNALS, catch_signals

PARENT = """
import os, shlex, subprocess, sys, time
child = (
    "import os, time; from lmcore.hardware.distributed import follow_parent;"
    "follow_parent(); print(os.getpid(), flush=True); time.sleep(60)"
)
command = shlex.join([sys.executable, "-c", child])
subprocess.Popen(["/bin/sh", "-c", sys.argv[1] % command], env=os.environ | dict([sys.argv[2].split("=")]))
time.sleep(60)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_handlers_come_back(number: int) -> None:
    before = {known: signal.getsignal(known) for known in SIGNALS}
    with catch_signals() as interrupt:
        assert interrupt.signal is None
        os.kill(os.getpid(), number)
        assert interrupt.signal == number
    assert {known: signal.getsignal(known) for known in SIGNALS} == before


def test_another_event_ends_the_process_at_once() -> None:
    """The same one may come as several signals: from Slurm, and from the launcher that Slurm signalled too."""
    with catch_signals() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.signal == signal.SIGTERM
    program = f"""
import os, signal, time
from lmcore.hardware.signals import catch_signals
with catch_signals():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({SAME_SIGNAL_SECONDS + 0.1})
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(60)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=50).returncode == -signal.SIGHUP


def test_nohup_protects() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_signals() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupt.signal is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("shell", "variable"),
    [("exec %s", "DVC_STAGE=train"), ("%s; true", "DVC_STAGE=train"), ("exec %s", "RANK=1")],
    ids=["below bash", "below dash, which waits", "a worker"],
)
def test_a_trainer_does_not_outlive_what_started_it(shell: str, variable: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    environment |= {
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "h",
        "MASTER_PORT": "1",
    }
    command = [sys.executable, "-c", PARENT, shell, variable]
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    child.wait(timeout=50)  # while the parent is a zombie still
    parent.wait()
    parent.stdout.close()


def test_by_hand_a_trainer_goes_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`nohup python -m stages.train &`, and the terminal closed: nothing is above it that it should follow."""
    for name in ("DVC_STAGE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    before = threading.active_count()
    follow_parent()
    assert threading.active_count() == before
