"""Which choices of blocks Hugging Face transformers has an architecture for."""

from typing import Any

import pytest

from lmcore.model.hf_architecture import explain_misfit, hugging_face_architecture
from lmcore.model.params import DiffusionParams, ModelParams

CLASSIC = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "qk_norm": False, "bias": True}
MODERN = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": True, "bias": False}


def make_params(**choices: Any) -> ModelParams:
    shape = {"n_layers": 1, "n_heads": 4, "n_kv_heads": None, "d_model": 16, "d_head": None, "d_ff": None}
    usual = {"context_length": 8, "norm_epsilon": None, "rope_base": 1e4}
    others = {**usual, "dropout": 0.0, "tie_embeddings": True, "logit_softcap": None, "document_mask": False}
    others["diffusion"] = DiffusionParams()
    return ModelParams(**{**shape, **others, **choices})


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        (CLASSIC, "gpt2"),
        ({**CLASSIC, "bias": False}, "gpt2"),
        ({**CLASSIC, "logit_softcap": 15.0}, None),
        ({**CLASSIC, "n_kv_heads": 4}, "gpt2"),
        ({**CLASSIC, "n_kv_heads": 2}, None),
        ({**CLASSIC, "qk_norm": True}, None),
        ({**CLASSIC, "position": "rope"}, None),
        ({**CLASSIC, "d_head": 4}, "gpt2"),
        ({**CLASSIC, "d_head": 8}, None),
        ({**MODERN, "d_head": 8, "rope_base": 5e5, "norm_epsilon": 1e-5}, "qwen3"),
        ({**MODERN, "qk_norm": False}, "llama"),
        ({**MODERN, "qk_norm": False, "bias": True, "n_kv_heads": 1}, "llama"),
        (MODERN, "qwen3"),
        ({**MODERN, "n_kv_heads": 2}, "qwen3"),
        ({**MODERN, "bias": True}, None),
        ({**MODERN, "mlp": "gelu"}, None),
    ],
)
def test_architecture_of_choices(choices: dict[str, Any], expected: str | None) -> None:
    assert hugging_face_architecture(make_params(**choices)) == expected


@pytest.mark.parametrize(
    ("choices", "found", "wanted"),
    [
        ({**CLASSIC, "n_kv_heads": 2}, "model.n_kv_heads=2", "model.n_kv_heads=null (gpt2)"),
        ({**MODERN, "norm": "layernorm"}, "model.norm=layernorm", "model.norm=rmsnorm (qwen3)"),
        (
            {**MODERN, "bias": True, "qk_norm": True, "mlp": "gelu"},
            "model.mlp=gelu, model.qk_norm=true",
            "model.mlp=swiglu, model.qk_norm=false (llama)",
        ),
    ],
)
def test_misfit_names_the_choices_and_the_way_out(choices: dict[str, Any], found: str, wanted: str) -> None:
    expected = f"no Hugging Face architecture has {found} beside the other choices: set {wanted}"
    assert explain_misfit(make_params(**choices)) == expected
