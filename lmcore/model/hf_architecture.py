"""Which architecture of Hugging Face transformers computes the same function as our choice of blocks."""

import json
from typing import Literal

from lmcore.model.params import ModelParams

Architecture = Literal["gpt2", "llama", "qwen3"]

# What each architecture fixes; whatever it does not name is free (GPT-2 always has biases, and zeros mean none).
# Keys of ModelParams; `None` for n_kv_heads is as many as there are query heads, for d_head that these share d_model.
FIXED_CHOICES: dict[Architecture, dict[str, str | bool | None]] = {
    "gpt2": {
        "position": "learned",
        "norm": "layernorm",
        "mlp": "gelu",
        "qk_norm": False,
        "n_kv_heads": None,
        "d_head": None,
    },
    "llama": {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": False},
    "qwen3": {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": True, "bias": False},
}


def hugging_face_architecture(params: ModelParams) -> Architecture | None:
    """The architecture that a model of these params can be exported as, or None."""
    return next((name for name in FIXED_CHOICES if not _misfits(params, name)), None)


def explain_misfit(params: ModelParams) -> str:
    """Why these params have no architecture, and the fewest changes that give them one, in one phrase.

    Example: `no Hugging Face architecture has model.norm=layernorm beside the other choices: set model.norm=rmsnorm
    (llama)`
    """
    nearest = min(FIXED_CHOICES, key=lambda name: len(_misfits(params, name)))
    wanted = _misfits(params, nearest)
    assert wanted, nearest
    found = {name: getattr(params, name) for name in wanted}
    return (
        f"no Hugging Face architecture has {_assignments(found)} beside the other choices: "
        f"set {_assignments(wanted)} ({nearest})"
    )


def _misfits(params: ModelParams, architecture: Architecture) -> dict[str, str | bool | None]:
    """The keys whose values the architecture does not allow, with the values that it needs."""
    chosen = params.model_dump()
    chosen |= {"n_kv_heads": None} if params.kv_heads == params.n_heads else {}
    chosen |= {"d_head": None} if params.head_width * params.n_heads == params.d_model else {}
    fixed = {**FIXED_CHOICES[architecture], "logit_softcap": None}  # which none of them has
    return {name: value for name, value in fixed.items() if chosen[name] != value}


def _assignments(values: dict[str, str | bool | None]) -> str:
    """{"qk_norm": False} -> `model.qk_norm=false`, as `dvc exp run -S` takes it."""
    return ", ".join(f"model.{name}={json.dumps(value).strip(chr(34))}" for name, value in values.items())
