"""Parameters of the hardware section and of a row of the profiles table."""

from typing import Literal

from lmcore.params import AutoOrCount, Section
from lmcore.runtime.executor import ExecutorParams

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16", "fp16"]
Sharding = Literal["replicate", "full"]


class HardwareParams(ExecutorParams):
    """The request: a profile's name or `auto`, and what overrides it (empty: as the profile says)."""

    profile: str = "auto"
    device: Device | None = None
    precision: Literal["auto"] | Precision | None = None
    micro_batch_size: AutoOrCount | None = None
    compile: Literal["auto"] | bool | None = None
    activation_checkpointing: bool | None = None
    processes: AutoOrCount | None = None
    sharding: Sharding | None = None


class Profile(Section):
    """One row of the `profiles` table of params.yaml."""

    device: Device
    precision: Literal["auto"] | Precision
    micro_batch_size: AutoOrCount
    compile: Literal["auto"] | bool
    activation_checkpointing: bool
    processes: AutoOrCount
    sharding: Sharding
