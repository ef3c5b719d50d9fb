"""The executor for work on text that params.yaml asks for."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from lmcore.params import AutoOrCount, Section, parse_section, read_params
from lmcore.runtime.process_pool import Executor, Processes, count_cores
from lmcore.runtime.ray_pool import RayCluster


class ExecutorParams(Section):
    """Two keys of section `hardware`: processes that work on text at once (`auto`: one per core), and where."""

    workers: AutoOrCount = "auto"
    data_engine: Literal["local", "ray"] = "local"


def open_executor(path: Path = Path("params.yaml")) -> AbstractContextManager[Executor]:
    """Raises ParameterError for a wrong value, and LmcoreError where there is no Ray cluster to join."""
    hardware = read_params(path).get("hardware")
    if isinstance(hardware, Mapping):  # its other keys are the training's
        hardware = {key: value for key, value in hardware.items() if key in ExecutorParams.model_fields}
    params = parse_section(ExecutorParams, "hardware", hardware)
    if params.data_engine == "ray":
        return RayCluster(None if params.workers == "auto" else params.workers)
    return Processes(count_cores() if params.workers == "auto" else params.workers)
