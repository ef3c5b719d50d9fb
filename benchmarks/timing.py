"""Measurements in turns: machines are shared, so that only the ratio of alternating runs counts.

Without torch, whose memory would count in the processes of benchmarks that do not need it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, TypeVar

Name = TypeVar("Name")
Result = TypeVar("Result")


def alternate(sides: Mapping[Name, Callable[[], Result]], rounds: int) -> dict[Name, list[Result]]:
    """Return the results of `rounds` calls of each side, made in turn."""
    results: dict[Name, list[Result]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            results[name].append(call())
    return results


def measure_seconds(call: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    started = perf_counter()
    call()
    return perf_counter() - started


def run_apart(module: str, *arguments: object, **environment: str) -> Any:
    """Run `python -m module` in a process of its own; return the JSON value in its last line."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    return json.loads(finished.stdout.splitlines()[-1])
