"""Small models with random weights, to be exported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny import tokenizer_params

from lmcore.model.gpt import GPT
from lmcore.model.params import DiffusionParams, ModelParams
from lmcore.model.save_load import save_model
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

CLASSIC: dict[str, Any] = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "qk_norm": False, "bias": True}
MODERN: dict[str, Any] = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": False, "bias": False}
CHOICES: dict[str, dict[str, Any]] = {
    "gpt2": CLASSIC,
    "gpt2, untied": {**CLASSIC, "tie_embeddings": False, "d_ff": 40},
    "gpt2, no biases": {**CLASSIC, "bias": False},
    "llama, grouped, untied": {**MODERN, "n_kv_heads": 2, "tie_embeddings": False},
    "llama, biases": {**MODERN, "bias": True, "d_ff": 40},
    "qwen3, grouped": {**MODERN, "qk_norm": True, "n_kv_heads": 2},
    "qwen3, one key-value head, untied": {**MODERN, "qk_norm": True, "n_kv_heads": 1, "tie_embeddings": False},
}
TEXT = ["def double(x):\n    return 2 * x\n", "naïve café, for all: the text of the text"]


def write_model(
    folder: Path,
    choices: dict[str, Any],
    kind: str = "byte",
    reserved: Sequence[str] = (),
    *,
    text: Sequence[str] = TEXT,
    **settings: Any,
) -> GPT:
    """A model of random weights, biases and gains, saved with a tokenizer as the train stage does."""
    tokenizer = train_tokenizer(tokenizer_params(kind, special_tokens=[*reserved], **settings), [list(text)])
    shape = {"n_layers": 2, "n_heads": 4, "n_kv_heads": None, "d_model": 32, "d_head": None, "d_ff": None}
    params = ModelParams.model_validate(
        {
            **shape,
            "context_length": 48,
            "norm_epsilon": None,
            "rope_base": 1e4,
            "dropout": 0.1,
            "tie_embeddings": True,
            "logit_softcap": None,
            "document_mask": False,
            "diffusion": DiffusionParams().model_dump(),
            **choices,
        }
    )
    model = GPT(params, tokenizer.vocab_size, end_of_text=tokenizer.end_of_text).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.empty(weight.shape).normal_(0.0, 0.2, generator=generator))
    save_model(folder, model, {"steps": 12})
    tokenizer.save(folder)
    return model
