"""What the train section of params.yaml may say."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmcore.params import Int, Section
from lmcore.tokens.windows import Packing

LENGTHS = ("max_steps", "max_tokens", "epochs")


class TrainParams(Section):
    """The science of a run: everything that its numbers depend on besides the model's shape and the tokens."""

    seed: Int = Field(ge=0)
    init_from: str | None
    lora_rank: Int | None = Field(ge=1)
    lora_alpha: float = Field(gt=0)
    batch_size: Int = Field(ge=1)
    max_steps: Int | None = Field(ge=1)
    max_tokens: Int | None = Field(ge=1)
    epochs: float | None = Field(gt=0)
    mixture: Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)] | None
    packing: Packing
    window_jitter: bool
    optimizer: Literal["adamw", "muon"]
    learning_rate: float = Field(gt=0)
    schedule: Literal["cosine", "wsd", "linear", "constant"]
    warmup_steps: Int = Field(ge=0)
    decay_fraction: float = Field(gt=0, le=1)
    min_learning_rate_ratio: float = Field(ge=0, le=1)
    weight_decay: float = Field(ge=0)
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    muon_momentum: float = Field(ge=0, lt=1)
    grad_clip: float | None = Field(gt=0)
    ema_decay: float | None = Field(gt=0, lt=1)
    max_skipped_steps: Int = Field(ge=0)
    deterministic: bool
    log_every: Int = Field(ge=1)
    eval_every: Int = Field(ge=1)
    eval_windows: Int = Field(ge=1)
    checkpoint_every_steps: Int | None = Field(ge=1)
    checkpoint_every_minutes: float | None = Field(gt=0)
    keep_checkpoints: Int = Field(ge=1)

    @model_validator(mode="after")
    def _check_lora(self) -> Self:
        if self.lora_rank is not None and self.init_from is None:
            raise ValueError(f"train.lora_rank={self.lora_rank}: adapts a model that is there: set train.init_from")
        if self.lora_rank is not None and self.optimizer == "muon":
            raise ValueError(f"train.lora_rank={self.lora_rank}: set train.optimizer=adamw, muon is for whole matrices")
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
