"""Hugging Face's terms for our model, both ways: the values of config.json and the names of the weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmcore.errors import ArtifactError
from lmcore.model.architecture import Architecture
from lmcore.model.gpt import GPT, LAYER_NORM_EPSILON, RMS_NORM_EPSILON, ROPE_BASE, ModelParams
from lmcore.params import parse_section

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

# What a config.json means that leaves a key out; with `config_values`, all keys that change what a model computes.
DEFAULTS: dict[Architecture, dict[str, Any]] = {
    "gpt2": {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    "llama": {"rms_norm_eps": 1e-6, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False},
    "qwen3": {
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "head_dim": 128,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    },
}
FOLLOW_FROM_THE_SHAPE = {"n_inner", "num_key_value_heads", "head_dim"}  # where they are absent or null
WITHOUT_EFFECT = {"architectures", "resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout"}  # on the weights
SYNONYMS = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu"}
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # constants that older versions saved


def config_values(params: ModelParams, vocab_size: int, architecture: Architecture) -> dict[str, Any]:
    """Arguments of the architecture's config class that make the same network."""
    return {
        **(gpt2_shape(params) if architecture == "gpt2" else llama_shape(params)),
        "architectures": [MODEL_CLASSES[architecture]],
        "vocab_size": vocab_size,
        "tie_word_embeddings": params.tie_embeddings,
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


def read_config(config: Mapping[str, Any], place: str) -> tuple[Architecture, ModelParams, int]:
    """The architecture, our params and the vocabulary size of a parsed config.json; dropout is left to training.

    Raises ArtifactError or ParameterError for a network that our blocks do not compute, naming the key and its value.
    """
    architecture = config["model_type"]
    if architecture not in MODEL_CLASSES:
        raise ArtifactError(f"{place}: model_type={architecture!r}: must be one of {', '.join(MODEL_CLASSES)}")
    values = {**DEFAULTS[architecture], **config}
    if "rope_parameters" not in values:  # as transformers wrote it before version 5
        scaling = values.get("rope_scaling") or {"rope_type": "default"}
        values["rope_parameters"] = {**scaling, "rope_theta": values.get("rope_theta", ROPE_BASE)}
    choices = gpt2_choices(values) if architecture == "gpt2" else llama_choices(values)
    params = parse_section(ModelParams, f"{place}: model", {**choices, "dropout": 0.0, "logit_softcap": None})
    vocab_size = values.get("vocab_size")
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise ArtifactError(f"{place}: vocab_size={vocab_size!r}: must be a number of tokens")
    # What we would write for these params must be what is written there.
    ours = {**DEFAULTS[architecture], **config_values(params, vocab_size, architecture), "quantization_config": None}
    for key in sorted(ours.keys() - WITHOUT_EFFECT):
        found = values.get(key)
        if SYNONYMS.get(str(found), found) != ours[key] and not (found is None and key in FOLLOW_FROM_THE_SHAPE):
            raise ArtifactError(f"{place}: {key}={found!r}: lmcore's blocks compute {key}={ours[key]!r} alone")
    return architecture, params, vocab_size


def gpt2_choices(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of our params that those of a GPT2Config mean, the inverse of `gpt2_shape`."""
    return {
        "position": "learned",
        "norm": "layernorm",
        "mlp": "gelu",
        "qk_norm": False,
        "bias": True,
        "n_layers": values.get("n_layer"),
        "n_heads": values.get("n_head"),
        "n_kv_heads": None,
        "d_model": values.get("n_embd"),
        "d_ff": values.get("n_inner"),
        "context_length": values.get("n_positions"),
        "tie_embeddings": values["tie_word_embeddings"],
    }


def llama_choices(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of our params that those of a LlamaConfig or Qwen3Config mean, the inverse of `llama_shape`."""
    return {
        "position": "rope",
        "norm": "rmsnorm",
        "mlp": "swiglu",
        "qk_norm": values["model_type"] == "qwen3",
        "bias": values.get("mlp_bias", False),  # Qwen3 has none
        "n_layers": values.get("num_hidden_layers"),
        "n_heads": values.get("num_attention_heads"),
        "n_kv_heads": values.get("num_key_value_heads"),
        "d_model": values.get("hidden_size"),
        "d_ff": values.get("intermediate_size"),
        "context_length": values.get("max_position_embeddings"),
        "tie_embeddings": values["tie_word_embeddings"],
    }


def named_weights(model: GPT, architecture: Architecture) -> dict[str, Tensor]:
    """The weights under the architecture's names; a tied head is the embedding and has none of its own."""
    named: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        theirs = their_names(name, architecture)
        parts = weight.split(fused_rows(model.params, name)) if len(theirs) > 1 else [weight]
        named |= {their: turn(their, part) for their, part in zip(theirs, parts, strict=True)}
        # All of GPT-2's layers but the embeddings and the head have a bias, and zeros mean none.
        if architecture == "gpt2" and name.startswith(("blocks.", "final_norm.")):
            named.setdefault(theirs[0].replace(".weight", ".bias"), torch.zeros(weight.shape[0]))
    if model.params.tie_embeddings:
        del named["lm_head.weight"]
    return named


def our_weights(model: GPT, architecture: Architecture, named: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """The state that `model` has with the weights `named` in the architecture's terms, the inverse of `named_weights`.

    Raises ArtifactError where `named` holds more or less than the model, naming it.
    """
    base = "transformer." if architecture == "gpt2" else "model."  # a network saved without its head has no prefix
    theirs = {
        name if name.startswith((base, "lm_head.")) else f"{base}{name}": weight
        for name, weight in named.items()
        if not name.endswith(BUFFERS)
    }
    embedding, head = their_names("token_embedding.weight", architecture)[0], "lm_head.weight"
    if model.params.tie_embeddings and embedding in theirs:
        theirs[head] = theirs[embedding]
    wanted = {name: their_names(name, architecture) for name in model.state_dict()}
    known = {their for names in wanted.values() for their in names}
    for fault, names in {"lacks": known - theirs.keys(), "holds the unknown": theirs.keys() - known}.items():
        if names:
            raise ArtifactError(f"{place} {fault} {', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''}")
    parts = {name: [turn(their, theirs[their]) for their in names] for name, names in wanted.items()}
    return {name: torch.cat(several) if len(several) > 1 else several[0] for name, several in parts.items()}


def their_names(name: str, architecture: Architecture) -> list[str]:
    """The architecture's names of our weight or bias `name`."""
    layer, _, kind = name.rpartition(".")
    block = layer.split(".")[1] if layer.startswith("blocks.") else ""
    theirs = (GPT2_LAYERS if architecture == "gpt2" else LLAMA_LAYERS)[layer.replace(f".{block}.", ".*.", 1)]
    return [f"{their.replace('*', block)}.{kind}" for their in theirs]


def fused_rows(params: ModelParams, name: str) -> list[int]:
    """The rows of each part of a fused matrix or bias."""
    if ".qkv." in name:
        key_rows = params.kv_heads * params.head_width
        return [params.d_model, key_rows, key_rows]
    return [params.ff_width, params.ff_width]


def turn(their: str, weight: Tensor) -> Tensor:
    """GPT-2 holds the matrices of its blocks as (in, out), ours are (out, in); all others are alike."""
    return weight.T if their.startswith("transformer.h.") and weight.dim() == 2 else weight
