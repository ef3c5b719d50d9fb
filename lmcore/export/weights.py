"""Our model in Hugging Face's terms: the values of its config.json and the names of its weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmcore.model.architecture import Architecture
from lmcore.model.gpt import GPT, LAYER_NORM_EPSILON, RMS_NORM_EPSILON, ROPE_BASE, ModelParams

MODEL_CLASSES: dict[Architecture, str] = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

# Our layer -> theirs; several where they split one of ours by rows. `*` is the block's number.
GPT2_LAYERS = {
    "token_embedding": ["transformer.wte"],
    "position_embedding": ["transformer.wpe"],
    "blocks.*.attention_norm": ["transformer.h.*.ln_1"],
    "blocks.*.attention.qkv": ["transformer.h.*.attn.c_attn"],
    "blocks.*.attention.projection": ["transformer.h.*.attn.c_proj"],
    "blocks.*.mlp_norm": ["transformer.h.*.ln_2"],
    "blocks.*.mlp.up": ["transformer.h.*.mlp.c_fc"],
    "blocks.*.mlp.projection": ["transformer.h.*.mlp.c_proj"],
    "final_norm": ["transformer.ln_f"],
    "head": ["lm_head"],
}
LLAMA_LAYERS = {
    "token_embedding": ["model.embed_tokens"],
    "blocks.*.attention_norm": ["model.layers.*.input_layernorm"],
    "blocks.*.attention.qkv": [f"model.layers.*.self_attn.{part}_proj" for part in "qkv"],
    "blocks.*.attention.query_norm": ["model.layers.*.self_attn.q_norm"],
    "blocks.*.attention.key_norm": ["model.layers.*.self_attn.k_norm"],
    "blocks.*.attention.projection": ["model.layers.*.self_attn.o_proj"],
    "blocks.*.mlp_norm": ["model.layers.*.post_attention_layernorm"],
    "blocks.*.mlp.up": ["model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj"],
    "blocks.*.mlp.projection": ["model.layers.*.mlp.down_proj"],
    "final_norm": ["model.norm"],
    "head": ["lm_head"],
}


def config_values(model: GPT, architecture: Architecture) -> dict[str, Any]:
    """Arguments of the architecture's config class that make the same network."""
    return {
        **(gpt2_shape(model.params) if architecture == "gpt2" else llama_shape(model.params)),
        "architectures": [MODEL_CLASSES[architecture]],
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.params.tie_embeddings,
    }


def gpt2_shape(params: ModelParams) -> dict[str, Any]:
    """Arguments of GPT2Config."""
    return {
        "n_layer": params.n_layers,
        "n_head": params.n_heads,
        "n_embd": params.d_model,
        "n_inner": params.ff_width,
        "n_positions": params.context_length,
        "activation_function": "gelu_new",  # the tanh form
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "resid_pdrop": params.dropout,
        "embd_pdrop": params.dropout,
        "attn_pdrop": params.dropout,
    }


def llama_shape(params: ModelParams) -> dict[str, Any]:
    """Arguments of LlamaConfig; all but `mlp_bias` are Qwen3Config's too."""
    return {
        "num_hidden_layers": params.n_layers,
        "num_attention_heads": params.n_heads,
        "num_key_value_heads": params.kv_heads,
        "head_dim": params.head_width,
        "hidden_size": params.d_model,
        "intermediate_size": params.ff_width,
        "max_position_embeddings": params.context_length,
        "hidden_act": "silu",
        "rms_norm_eps": RMS_NORM_EPSILON,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        "attention_dropout": params.dropout,
        "attention_bias": params.bias,
        **({} if params.qk_norm else {"mlp_bias": params.bias}),
    }


def named_weights(model: GPT, architecture: Architecture) -> dict[str, Tensor]:
    """The weights under the architecture's names; a tied head is the embedding and has none of its own."""
    weights = rename_weights(model, GPT2_LAYERS if architecture == "gpt2" else LLAMA_LAYERS)
    if architecture == "gpt2":
        weights = adapt_to_gpt2(weights)
    if model.params.tie_embeddings:
        del weights["lm_head.weight"]
    return weights


def rename_weights(model: GPT, layers: Mapping[str, list[str]]) -> dict[str, Tensor]:
    """Our weights under the names of `layers`, a fused matrix cut into the parts named there."""
    params = model.params
    key_rows = params.kv_heads * params.head_width
    rows = {"qkv": [params.d_model, key_rows, key_rows], "up": [params.ff_width, params.ff_width]}
    renamed: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        layer, _, kind = name.rpartition(".")  # kind is weight or bias
        block = layer.split(".")[1] if layer.startswith("blocks.") else ""
        theirs = layers[layer.replace(f".{block}.", ".*.", 1)]
        parts = weight.split(rows[layer.rpartition(".")[2]]) if len(theirs) > 1 else [weight]
        renamed |= {f"{their.replace('*', block)}.{kind}": part for their, part in zip(theirs, parts, strict=True)}
    return renamed


def adapt_to_gpt2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2 holds the matrices of its blocks as (in, out), ours are (out, in), and all its layers have a bias."""
    adapted = dict(weights)
    for name, weight in weights.items():
        if name.startswith(("transformer.h.", "transformer.ln_f.")) and name.endswith(".weight"):
            adapted[name] = weight.T if weight.dim() == 2 else weight
            adapted.setdefault(name.replace(".weight", ".bias"), torch.zeros(weight.shape[0]))
    return adapted
