"""What the tracking section of params.yaml may say."""

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from lmcore.params import Section

BackendName = Literal["mlflow", "wandb", "tensorboard"]


class TrackingParams(Section):
    """Where a training's metrics go beside runs/KEY, which keeps all of them. No stage depends on it."""

    backends: Annotated[list[BackendName], BeforeValidator(lambda value: [] if value is None else value)] = Field(
        default=["mlflow"]
    )
    experiment: str = Field(default="lmcore", min_length=1)
    system_metrics_seconds: float | None = Field(default=10.0, ge=1.0)

    @field_validator("backends")
    @classmethod
    def _check_backends(cls, backends: list[BackendName]) -> list[BackendName]:
        if len(set(backends)) < len(backends):
            raise ValueError(f"tracking.backends={backends}: each is named once")
        for name in backends:
            if find_spec(name) is None:
                raise ValueError(
                    f"tracking.backends: {name} is not installed: pip install -e '.[{name}]', or leave it out"
                )
        return backends
