"""What the machine does meanwhile: processor, memory, disk and cards, sampled by a thread of its own."""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from lmcore.errors import FULL_DISK
from lmcore.runtime.progress import warn
from lmcore.tracking.spool import SYSTEM, cut_torn_line
from lmcore.tracking.store import SYSTEM_PREFIX

SHORTEST_SECONDS = 1.0  # over less, the share of the processor that is in use means nothing

Measure = Callable[[], dict[str, float]]


class SystemSampler(threading.Thread):
    """Appends a row to system.jsonl every so many seconds, by the names that MLflow gives such metrics.

    They say nothing of the model and are kept apart from metrics.jsonl. A resumed run goes on with their step.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        super().__init__(name="system-metrics", daemon=True)
        self.path, self.seconds = folder / SYSTEM, seconds
        self.step = 0
        self.ended = threading.Event()
        self._has_warned = False

    def run(self) -> None:
        """Sample until the end, and then once more, so that a short training has its row too."""
        try:
            self.step = cut_torn_line(self.path)
            measures: list[Measure] = [partial(measure_machine, self.path.parent), *open_cards()]
            psutil.cpu_percent()  # counts from here
            last, ended = time.monotonic(), False
            while not ended:
                ended = self.ended.wait(self.seconds)
                if ended and time.monotonic() - last < SHORTEST_SECONDS:
                    return
                last = time.monotonic()
                self._append({SYSTEM_PREFIX + name: value for measure in measures for name, value in measure().items()})
        except Exception as error:  # a tracker must never end a training
            warn(f"system metrics are not sampled any more ({type(error).__name__}: {error})")

    def finish(self) -> None:
        """The training is over."""
        self.ended.set()
        self.join()

    def _append(self, values: dict[str, float]) -> None:
        machine = {"time": time.time_ns() // 1_000_000, **values}
        line = json.dumps({"step": self.step, "machine": machine}) + "\n"
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            os.truncate(self.path, size)
            if not self._has_warned:
                self._has_warned = True
                warn(f"{self.path} cannot grow ({os.strerror(error.errno or 0)}): system metrics are left out")
        else:
            self.step += 1


def measure_machine(folder: Path) -> dict[str, float]:
    """Processor, memory and the disk that `folder` is on."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(folder))
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": round(memory.used / 1e6, 1),
        "system_memory_usage_percentage": round(100 * memory.used / memory.total, 1),
        "disk_usage_percentage": disk.percent,
        "disk_available_megabytes": round(disk.free / 1e6, 1),
    }


def open_cards() -> list[Measure]:
    """Return what measures each card; nothing without NVML, or Python's package of it."""
    if find_spec("pynvml") is None:
        return []
    nvml: Any = import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no such driver: a machine without NVIDIA's cards
        return []

    def measure(index: int) -> dict[str, float]:
        card, values = nvml.nvmlDeviceGetHandleByIndex(index), {}
        with suppress(nvml.NVMLError):  # a part of a divided card tells only some of it
            memory = nvml.nvmlDeviceGetMemoryInfo(card)
            values["memory_usage_megabytes"] = memory.used / 1e6
            values["memory_usage_percentage"] = 100 * (memory.used / memory.total)
        with suppress(nvml.NVMLError):
            values["utilization_percentage"] = nvml.nvmlDeviceGetUtilizationRates(card).gpu
        with suppress(nvml.NVMLError):
            values["power_usage_watts"] = nvml.nvmlDeviceGetPowerUsage(card) / 1000
        return {f"gpu_{index}_{name}": round(value, 1) for name, value in values.items()}

    return [partial(measure, index) for index in range(nvml.nvmlDeviceGetCount())]
