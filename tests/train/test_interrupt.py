"""Signals are noted, handlers come back, and what is ignored stays ignored."""

import os
import select
import signal
import subprocess
import sys

import pytest

from lmcore.distributed import SAME_SIGNAL_SECONDS
from lmcore.train.interrupt import SIGNALS, catch_signals

ORPHAN = """
import os, subprocess, sys, time
child = (
    "import time; from lmcore.train.interrupt import follow_parent;"
    "follow_parent(); print('on', flush=True); time.sleep(600)"
)
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
process.stdout.readline()
print(process.pid, flush=True)
time.sleep(600)
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
    """The same one may come as several signals: the death of a parent with four threads did, 2 ms apart."""
    with catch_signals() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.signal == signal.SIGTERM
    program = f"""
import os, signal, time
from lmcore.train.interrupt import catch_signals
with catch_signals():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({SAME_SIGNAL_SECONDS + 0.1})
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(600)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=500).returncode == -signal.SIGHUP


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


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux")
def test_a_trainer_does_not_outlive_its_dvc() -> None:
    environment = {**os.environ, "DVC_STAGE": "train"}
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    watch = os.pidfd_open(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert select.select([watch], [], [], 500)[0], "the child lives on"
    os.close(watch)
