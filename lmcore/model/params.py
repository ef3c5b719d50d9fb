"""What the model section of params.yaml may say: the shape of the network."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lmcore.params import Int, Section

LAYER_NORM_EPSILON = 1e-5  # GPT-2's
RMS_NORM_EPSILON = 1e-6  # Llama's and Qwen3's


class DiffusionParams(Section):
    """How the model learns to guess ahead; an empty `block_size` is a GPT without masks."""

    block_size: Int | None = Field(default=None, ge=2)
    weight: float = Field(default=0.5, gt=0.0)
    start_fraction: float = Field(default=0.5, ge=0.0, lt=1.0)
    block_fraction: float = Field(default=0.5, gt=0.0, le=1.0)
    random_offset: bool = True


class ModelParams(Section):
    """The shape of the network; the vocabulary size comes from the tokenizer."""

    n_layers: Int = Field(default=4, ge=1)
    n_heads: Int = Field(default=2, ge=1)
    n_kv_heads: Int | None = Field(default=None, ge=1)
    d_model: Int = Field(default=128, ge=1)
    d_head: Int | None = Field(default=None, ge=1)
    d_ff: Int | None = Field(default=None, ge=1)
    context_length: Int = Field(default=256, ge=2)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    norm_epsilon: float | None = Field(default=None, gt=0.0)
    position: Literal["learned", "rope"] = "rope"
    rope_base: float = Field(default=10000.0, gt=0.0)
    mlp: Literal["gelu", "swiglu", "relu2"] = "swiglu"
    qk_norm: bool = True
    bias: bool = False
    tie_embeddings: bool = True
    logit_softcap: float | None = Field(default=None, gt=0.0)
    document_mask: bool = False
    diffusion: DiffusionParams = DiffusionParams()

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.d_head is None and self.d_model % self.n_heads:
            raise ValueError(
                f"model.d_model={self.d_model}: must be divisible by model.n_heads={self.n_heads}, or set model.d_head"
            )
        if self.n_heads % self.kv_heads:
            raise ValueError(f"model.n_heads={self.n_heads}: must be divisible by model.n_kv_heads={self.kv_heads}")
        if self.position == "rope" and self.head_width % 2:
            derived = (
                f"model.d_model={self.d_model} over model.n_heads={self.n_heads} makes heads {self.head_width} wide"
            )
            given = f"model.d_head={self.d_head}" if self.d_head else derived
            raise ValueError(f"{given}: model.position=rope needs an even width")
        size = self.diffusion.block_size
        if size is not None and 2 * size > self.context_length:
            raise ValueError(
                f"model.diffusion.block_size={size}: must be at most half of model.context_length={self.context_length}"
            )
        return self

    @property
    def kv_heads(self) -> int:
        """Key-value heads; as many as query heads unless set (grouped-query attention, arXiv:2305.13245)."""
        return self.n_kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        """Numbers per head: D / H unless set (Qwen3's 0.6B model has 16 heads of 128 over a width of 1024)."""
        return self.d_head or self.d_model // self.n_heads

    @property
    def ff_width(self) -> int:
        """Width inside the MLP: 4 D, or 8/3 D to the nearest 64 for SwiGLU, whose third matrix then costs nothing."""
        if self.d_ff:
            return self.d_ff
        return max(64, round(self.d_model * 8 / 3 / 64) * 64) if self.mlp == "swiglu" else 4 * self.d_model

    def epsilon(self, norm: Literal["layernorm", "rmsnorm"]) -> float:
        """What such a norm adds to the mean square before the root, unless set: the usual."""
        return self.norm_epsilon or (RMS_NORM_EPSILON if norm == "rmsnorm" else LAYER_NORM_EPSILON)

    @property
    def trained_mask_blocks(self) -> int:
        """Blocks of masks that training puts behind each sequence: `diffusion.block_fraction` of those that fit."""
        size = self.diffusion.block_size
        if size is None:
            return 0
        return max(1, round(self.diffusion.block_fraction * ((self.context_length - size) // size)))

    @property
    def trained_masks(self) -> int:
        """Masks behind each sequence in training; none without `diffusion.block_size`."""
        return self.trained_mask_blocks * (self.diffusion.block_size or 0)

    @property
    def masks_per_token(self) -> float:
        """Masks for each token of a whole training, the steps before the first block included."""
        return (1 - self.diffusion.start_fraction) * self.trained_masks / self.context_length

    def spell_out(self) -> dict[str, Any]:
        """Every param with its value, also where it follows from others."""
        return {
            **self.model_dump(),
            "n_kv_heads": self.kv_heads,
            "d_head": self.head_width,
            "d_ff": self.ff_width,
            "norm_epsilon": self.epsilon(self.norm),
        }
