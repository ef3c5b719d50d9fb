"""Hugging Face's terms for our model, both ways: the values of config.json, and the names of the weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from lmcore.errors import ArtifactError, list_some
from lmcore.model.gpt import GPT
from lmcore.model.hf_architecture import FIXED_CHOICES, Architecture
from lmcore.model.params import DiffusionParams, ModelParams
from lmcore.model.weights import StoredWeights, copy_parts

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

# Our param -> their key, both ways.
GPT2_KEYS = {
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "d_model": "n_embd",
    "d_ff": "n_inner",
    "context_length": "n_positions",
    "norm_epsilon": "layer_norm_epsilon",
    "tie_embeddings": "tie_word_embeddings",
}
LLAMA_KEYS = {
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_model": "hidden_size",
    "d_head": "head_dim",
    "d_ff": "intermediate_size",
    "context_length": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
SHAPE_KEYS: dict[Architecture, dict[str, str]] = {"gpt2": GPT2_KEYS, "llama": LLAMA_KEYS, "qwen3": LLAMA_KEYS}
# Which biases there are; ours are in all linear layers or in none. GPT-2's have no key.
BIAS_KEYS: dict[Architecture, list[str]] = {
    "gpt2": [],
    "llama": ["attention_bias", "mlp_bias"],
    "qwen3": ["attention_bias"],
}
ACTIVATIONS: dict[Architecture, dict[str, str]] = {
    "gpt2": {"activation_function": "gelu_new"},  # the tanh form
    "llama": {"hidden_act": "silu"},
    "qwen3": {"hidden_act": "silu"},
}
SYNONYMS = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu"}

# What transformers takes for a key that config.json leaves out, where all its versions agree.
DEFAULTS: dict[Architecture, dict[str, Any]] = {
    "gpt2": {
        **ACTIVATIONS["gpt2"],
        "n_inner": None,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    "llama": {
        **ACTIVATIONS["llama"],
        "num_key_value_heads": None,
        "head_dim": None,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "qwen3": {**ACTIVATIONS["qwen3"], "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False},
}
# Keys that have one value in all that our blocks compute; left out they mean it too.
CONSTANTS: dict[str, Any] = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "is_causal": True,
    "is_encoder_decoder": False,
    "partial_rotary_factor": 1.0,
    "rope_scaling": None,
    "rope_interleaved": False,
    "use_sliding_window": False,
}
# Keys that change no logits of a model in evaluation, and those that another key decides about.
WITHOUT_EFFECT = re.compile(
    r"_.*|architectures|model_type|vocab_size|transformers_version|(torch_)?dtype|use_cache|initializer_range|"
    r".*_token_id|.*_pdrop|attention_dropout|summary_.*|task_specific_params|n_ctx|output_past|pretraining_tp|"
    r"is_llama_config|id2label|label2id|transformers\.js_config|rope_theta|rope_parameters|sliding_window|"
    r"max_window_layers|layer_types|n_special|predict_special_tokens|num_labels|finetuning_task|output_(attentions|hidden_states)|return_dict|chunk_size_feed_forward|problem_type"
)
# Tensors that are no weights: constants that published files hold.
NO_WEIGHTS: dict[Architecture, str] = {
    "gpt2": r"h\.\d+\.attn\.(masked_)?bias",
    "llama": r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    "qwen3": r"(?!)",  # nothing
}
REMEDY = "fetch the folder again"


def load_hugging_face(folder: Path, config: Mapping[str, Any]) -> GPT:
    """The model in evaluation mode, of the weights in `folder` and its config.json, which holds `config`.

    Raises ArtifactError for a network that our blocks do not compute, naming the key and its value, and for weights
    that are missing, left over, of another shape or no numbers, naming them.
    """
    architecture, params, vocab_size = read_config(config, f"{folder}/config.json")
    stored = StoredWeights(folder, REMEDY)
    stored.require_layers(params.n_layers)
    # GPT-2 as OpenAI published it is the network without its head, whose names have no first part.
    is_whole = architecture != "gpt2" or any(name.startswith("transformer.") for name in stored.shapes)
    prefix = "" if is_whole else "transformer."
    outline = GPT.outline(params, vocab_size)
    named = named_weights(outline, architecture)
    require_same({name.removeprefix(prefix): weight for name, weight in named.items()}, stored, architecture)
    weights = {}
    for name, weight in outline.named_parameters():
        parts = [turn(their, stored.read(their.removeprefix(prefix))) for their in their_names(name, architecture)]
        weights[name] = copy_parts(weight.shape, parts)
    has_own_head = params.tie_embeddings and "lm_head.weight" in stored.shapes
    if has_own_head and not torch.equal(stored.read("lm_head.weight").float(), weights["token_embedding.weight"]):
        raise ArtifactError(f"{folder}: tie_word_embeddings is true, but lm_head.weight is not the embedding")
    return GPT.of_weights(params, vocab_size, weights)


def require_same(wanted: Mapping[str, Tensor], stored: StoredWeights, architecture: Architecture) -> None:
    """Raise ArtifactError, naming them, unless `stored` has the weights `wanted`, in their shapes, and no others."""
    found, shapes = stored.shapes, {name: tuple(weight.shape) for name, weight in wanted.items()}
    if missing := shapes.keys() - found.keys():
        names = list_some(sorted(missing))
        raise ArtifactError(f"{stored.folder}: the weights lack {names}, which config.json asks for: {REMEDY}")
    allowed = re.compile(f"lm_head\\.weight|(transformer\\.)?{NO_WEIGHTS[architecture]}")
    if others := {name for name in found.keys() - shapes.keys() if not allowed.fullmatch(name)}:
        names = list_some(sorted(others))
        raise ArtifactError(f"{stored.folder}: config.json has no place for {names} among the weights")
    for name, shape in shapes.items():
        if found[name] != shape:
            raise ArtifactError(
                f"{stored.folder}: {name} has the shape {list(found[name])}, config.json makes it {list(shape)}"
            )


def config_values(params: ModelParams, vocab_size: int, architecture: Architecture) -> dict[str, Any]:
    """Arguments of the architecture's config class that make the same network."""
    ours = params.spell_out()
    values = {
        **{their: ours[our] for our, their in SHAPE_KEYS[architecture].items()},
        **dict.fromkeys(BIAS_KEYS[architecture], params.bias),
        **ACTIVATIONS[architecture],
        "architectures": [MODEL_CLASSES[architecture]],
        "vocab_size": vocab_size,
    }
    if architecture == "gpt2":
        return {**values, **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), params.dropout)}
    rope = {"rope_type": "default", "rope_theta": params.rope_base}
    # transformers 4 knows the base by its own key alone.
    return {**values, "rope_parameters": rope, "rope_theta": params.rope_base, "attention_dropout": params.dropout}


def read_config(values: Mapping[str, Any], place: str) -> tuple[Architecture, ModelParams, int]:
    """The architecture, our params and the vocabulary size of a config.json; dropout is left to training.

    Raises ArtifactError for a network that our blocks do not compute, naming the key and its value.
    """
    architecture = values["model_type"]
    keys = SHAPE_KEYS[architecture]
    given = {**DEFAULTS[architecture], **values}
    if missing := sorted({*keys.values(), "vocab_size"} - given.keys()):
        raise ArtifactError(f"{place} has no {missing[0]}: {REMEDY}")
    # An empty value means what follows from others only where the key may be left out too.
    for key in keys.values():
        if given[key] is None and DEFAULTS[architecture].get(key, 0) is not None:
            raise ArtifactError(f"{place}: {key} is empty: {REMEDY}")
    choices = {
        "bias": given[BIAS_KEYS[architecture][0]] if BIAS_KEYS[architecture] else True,
        "rope_base": 10_000.0 if architecture == "gpt2" else read_rope_base(given, place),
        **FIXED_CHOICES[architecture],
        **{our: given[their] for our, their in keys.items()},
        "dropout": 0.0,
        "logit_softcap": None,
        "document_mask": False,
        "diffusion": DiffusionParams(),
    }
    try:
        params = ModelParams.model_validate(choices)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = keys.get(str(problem["loc"][0]), problem["loc"][0]) if problem["loc"] else ""
        found = f"{name}={problem['input']!r}: " if name else ""
        raise ArtifactError(f"{place}: {found}{problem['msg']}") from None
    vocab_size = given["vocab_size"]
    if type(vocab_size) is not int or vocab_size < 1:
        raise ArtifactError(f"{place}: vocab_size={vocab_size!r}: must be a whole number of at least 1")
    require_known(given, params, architecture, place)
    return architecture, params, vocab_size


def read_rope_base(values: Mapping[str, Any], place: str) -> float:
    """The base of plain rotary positions, which older files have as `rope_theta`; others are refused."""
    given = values.get("rope_parameters")
    plain = {"rope_type": "default", "rope_theta": values.get("rope_theta", 10_000.0)}
    rope = {**plain, **given} if isinstance(given, dict) else plain
    if given is not None and (
        rope.keys() != plain.keys() or rope["rope_type"] != "default" or not isinstance(given, dict)
    ):
        raise ArtifactError(f"{place}: rope_parameters={given!r}: lmcore's blocks compute rope_type='default' alone")
    base: float = rope["rope_theta"]
    return base


def require_known(values: Mapping[str, Any], params: ModelParams, architecture: Architecture, place: str) -> None:
    """Raise ArtifactError for a key of config.json that makes another network than `params`, or that may."""
    fixed = {
        **CONSTANTS,
        **ACTIVATIONS[architecture],
        **dict.fromkeys(BIAS_KEYS[architecture], params.bias),
        "layer_types": ["full_attention"] * params.n_layers,
    }
    for key, value in values.items():
        if key in fixed:
            meant = SYNONYMS.get(value, value) if isinstance(value, str) else value
            if meant != fixed[key] and not (meant is None and (not fixed[key] or key == "layer_types")):
                raise ArtifactError(f"{place}: {key}={value!r}: lmcore's blocks compute {key}={fixed[key]!r} alone")
        elif (
            key not in SHAPE_KEYS[architecture].values()
            and not WITHOUT_EFFECT.fullmatch(key)
            and value not in (None, False, {}, [])
        ):
            raise ArtifactError(f"{place}: {key}={value!r}: unknown to lmcore, and it may change what is computed")


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
        return [params.n_heads * params.head_width, key_rows, key_rows]
    return [params.ff_width, params.ff_width]


def turn(their: str, weight: Tensor) -> Tensor:
    """GPT-2 holds the matrices of its blocks as (in, out), ours are (out, in); all others are alike."""
    return weight.T if their.startswith("transformer.h.") and weight.dim() == 2 else weight
