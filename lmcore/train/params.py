"""What the train section of params.yaml may say."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from lmcore.params import Int, Section, choice
from lmcore.tokens.windows import Packing
from lmcore.train.optimizer import OPTIMIZERS
from lmcore.train.schedule_shapes import SCHEDULES

LENGTHS = ("max_steps", "max_tokens", "epochs")


class TrainParams(Section):
    """The science of a run: everything that its numbers depend on besides the model's shape and the tokens."""

    seed: Int = Field(default=1, ge=0)
    init_from: str | None = None
    lora_rank: Int | None = Field(default=None, ge=1)
    lora_alpha: float = Field(default=16.0, gt=0)
    batch_size: Int = Field(default=4, ge=1)
    max_steps: Int | None = Field(default=1800, ge=1)
    max_tokens: Int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    mixture: Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)] | None = None
    packing: Packing = "stream"
    window_jitter: bool = True
    optimizer: Annotated[str, choice(OPTIMIZERS)] = "adamw"
    learning_rate: float = Field(default=0.002, gt=0)
    schedule: Annotated[str, choice(SCHEDULES)] = "cosine"
    warmup_steps: Int = Field(default=100, ge=0)
    decay_fraction: float = Field(default=0.4, gt=0, le=1)
    min_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    grad_clip: float | None = Field(default=1.0, gt=0)
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    max_skipped_steps: Int = Field(default=10, ge=0)
    deterministic: bool = False
    log_every: Int = Field(default=10, ge=1)
    eval_every: Int = Field(default=200, ge=1)
    eval_windows: Int = Field(default=64, ge=1)
    checkpoint_every_steps: Int | None = Field(default=200, ge=1)
    checkpoint_every_minutes: float | None = Field(default=10, gt=0, validate_default=True)
    keep_checkpoints: Int = Field(default=2, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _choose_length(cls, values: Any) -> Any:
        """Let `TrainParams(epochs=1)` do without the default of max_steps."""
        if isinstance(values, Mapping) and "max_steps" not in values:
            others = [values.get(name) for name in LENGTHS if name != "max_steps"]
            return values if others == [None, None] else {**values, "max_steps": None}
        return values

    @model_validator(mode="after")
    def _check_lora(self) -> Self:
        if self.lora_rank is not None and self.init_from is None:
            raise ValueError(f"train.lora_rank={self.lora_rank}: adapts a model that is there: set train.init_from")
        if self.lora_rank is not None and not OPTIMIZERS[self.optimizer].trains_adapters:
            raise ValueError(
                f"train.lora_rank={self.lora_rank}: set train.optimizer=adamw, {self.optimizer} is for whole matrices"
            )
        return self

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        given = {name: value for name in LENGTHS if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            found = ", ".join(f"train.{name}={value}" for name, value in given.items()) or "none is"
            raise ValueError(
                f"{found} set: exactly one of train.max_steps, train.max_tokens and train.epochs says how long to "
                f"train, leave the others empty"
            )
        return self
