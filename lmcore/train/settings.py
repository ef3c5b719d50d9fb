"""What the train section of params.yaml may say."""

from typing import Literal, Self

from pydantic import Field, model_validator

from lmcore.params import Int, Section


class TrainParams(Section):
    """The science of a run: everything that its numbers depend on besides the model's shape and the tokens."""

    seed: Int = Field(ge=0)
    batch_size: Int = Field(ge=1)
    max_steps: Int = Field(ge=1)
    optimizer: Literal["adamw"]
    learning_rate: float = Field(gt=0)
    schedule: Literal["cosine", "linear", "constant"]
    warmup_steps: Int = Field(ge=0)
    min_learning_rate_ratio: float = Field(ge=0, le=1)
    weight_decay: float = Field(ge=0)
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    grad_clip: float | None = Field(gt=0)
    log_every: Int = Field(ge=1)
    eval_every: Int = Field(ge=1)
    eval_windows: Int = Field(ge=1)
    checkpoint_every_steps: Int | None = Field(ge=1)
    checkpoint_every_minutes: float | None = Field(gt=0)
    keep_checkpoints: Int = Field(ge=1)

    def estimate_flops(self, parameters: int, context_length: int) -> float:
        """Floating-point operations of the whole run: 6 per parameter and token (Kaplan et al., arXiv:2001.08361)."""
        return 6.0 * parameters * self.max_steps * self.batch_size * context_length

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"train.warmup_steps={self.warmup_steps}: must be below train.max_steps={self.max_steps}, "
                f"lower it or train longer"
            )
        return self
