"""Models of transformers, with random weights, read as ours: the same logits, and whatever differs refused by name."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import TINY_MODEL

from lmcore.errors import ArtifactError, LmcoreError
from lmcore.files import sha256_file
from lmcore.model.gpt import GPT
from lmcore.model.hf_mapping import config_values, named_weights
from lmcore.model.save_load import load_model
from lmcore.model.weights import fingerprint_weights

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 24, "vocab_size": 61}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "vocab_size": 61,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
QWEN3 = {**LLAMA, "model_type": "qwen3", "head_dim": 8, "num_key_value_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt2, untied, narrow": {**GPT2, "tie_word_embeddings": False, "n_inner": 40},
    "llama": LLAMA,
    "llama, grouped, tied": {**LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama, one key-value head, biases": {
        **LLAMA,
        "num_key_value_heads": 1,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama, wide heads, another base and epsilon": {
        **LLAMA,
        "head_dim": 12,
        "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
    "gpt2, another epsilon": {**GPT2, "layer_norm_epsilon": 1e-2},
    "qwen3, grouped": QWEN3,
    "qwen3, wide heads": {**QWEN3, "head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen3, tied": {**QWEN3, "num_key_value_heads": 4, "tie_word_embeddings": True},
}


def save_theirs(folder: Path, values: dict[str, Any], **saving: Any) -> Any:
    """A model of transformers in which no weight, bias or gain is what another one is."""
    config = transformers.AutoConfig.for_model(**values)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.empty(weight.shape).normal_(0.0, 0.2, generator=generator))
    model.save_pretrained(folder, **saving)
    return model


@torch.inference_mode()
def largest_difference(ours: GPT, theirs: Any) -> float:
    tokens = torch.randint(ours.vocab_size, (3, 24), generator=torch.Generator().manual_seed(2))
    difference: torch.Tensor = (ours(tokens)[0] - theirs(tokens).logits).abs().max()
    return difference.item()


def change_json(path: Path, **changes: Any) -> None:
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value != "absent"}))


@pytest.mark.parametrize("values", CONFIGS.values(), ids=CONFIGS)
def test_their_model_is_ours(tmp_path: Path, values: dict[str, Any]) -> None:
    theirs = save_theirs(tmp_path, values)
    assert largest_difference(load_model(tmp_path), theirs) < 1e-4


@pytest.mark.parametrize("values", CONFIGS.values(), ids=CONFIGS)
def test_there_and_back_is_the_same(tmp_path: Path, values: dict[str, Any]) -> None:
    save_theirs(tmp_path, values)
    named = named_weights(load_model(tmp_path), values["model_type"])
    saved = load_file(tmp_path / "model.safetensors")
    assert named.keys() == saved.keys()
    assert all(torch.equal(named[name], weight) for name, weight in saved.items())


def test_pieces_are_one_model(tmp_path: Path) -> None:
    theirs = save_theirs(tmp_path, LLAMA, max_shard_size="20KB")
    pieces = sorted(tmp_path.glob("*.safetensors"))
    assert len(pieces) > 2
    assert largest_difference(load_model(tmp_path), theirs) < 1e-4
    before = fingerprint_weights(tmp_path)
    weights = load_file(pieces[1])
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, pieces[1])
    assert fingerprint_weights(tmp_path) != before
    pieces[2].unlink()
    with pytest.raises(ArtifactError, match=rf"{pieces[2].name} does not exist: fetch the folder again"):
        load_model(tmp_path)


def test_the_whole_file_goes_before_pieces_that_were_left(tmp_path: Path) -> None:
    save_theirs(tmp_path, LLAMA, max_shard_size="20KB")
    index = (tmp_path / "model.safetensors.index.json").read_text()
    theirs = save_theirs(tmp_path, {**LLAMA, "tie_word_embeddings": True})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert largest_difference(load_model(tmp_path), theirs) < 1e-4
    assert fingerprint_weights(tmp_path) == sha256_file(tmp_path / "model.safetensors")


def test_published_gpt2_has_no_prefix_and_constants_among_its_weights(tmp_path: Path) -> None:
    theirs = save_theirs(tmp_path, GPT2)
    saved = load_file(tmp_path / "model.safetensors")
    weights = {name.removeprefix("transformer."): weight for name, weight in saved.items()}
    constants = {f"h.{block}.attn.bias": torch.ones(1, 1, 24, 24).tril() for block in range(2)}
    constants["h.0.attn.bias"] = constants["h.0.attn.bias"].to(torch.bool)  # as older files have it
    constants |= {f"h.{block}.attn.masked_bias": torch.tensor(-1e4) for block in range(2)}
    save_file({**weights, **constants}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    published = {"n_special": 0, "predict_special_tokens": True, "pruned_heads": {}, "finetuning_task": None}
    absent = dict.fromkeys(("n_inner", "tie_word_embeddings", "dtype"), "absent")
    change_json(tmp_path / "config.json", **published, **absent)
    assert largest_difference(load_model(tmp_path), theirs) < 1e-4


def test_lower_precision_is_read_as_it_is(tmp_path: Path) -> None:
    save_theirs(tmp_path, QWEN3).bfloat16().save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert largest_difference(model, theirs) < 1e-4


ROPE = {"rope_type": "default", "rope_theta": 10000.0}
CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *((GPT2, {"activation_function": name}) for name in ("relu", "gelu", "gelu_pytorch_tanh", "absent", ["gelu"])),
    *((GPT2, {"layer_norm_epsilon": epsilon}) for epsilon in (1e-6, "absent", "1e-5")),
    *((GPT2, {"scale_attn_weights": value}) for value in (False, None, "absent")),
    (GPT2, {"scale_attn_by_inverse_layer_idx": True}),
    (GPT2, {"add_cross_attention": True}),
    (GPT2, {"reorder_and_upcast_attn": True}),
    *((GPT2, {"n_layer": layers}) for layers in (1, 3, "absent", "two", 0)),
    *((GPT2, {"n_head": heads}) for heads in (2, 3, "absent", 0)),
    (GPT2, {"num_attention_heads": 8}),
    (GPT2, {"n_embd": 33}),
    (GPT2, {"n_inner": 40}),
    *((GPT2, {"vocab_size": size}) for size in (60, None, True, 0)),
    (GPT2, {"tie_word_embeddings": False}),
    (GPT2, {"quantization_config": {"bits": 4}}),
    *((GPT2, {"model_type": kind}) for kind in ("mamba", ["gpt2"], None, "absent")),
    *((LLAMA, {"rms_norm_eps": epsilon}) for epsilon in (1e-5, "absent")),
    *((LLAMA, {"rope_parameters": value}) for value in ({**ROPE, "rope_theta": 5e5}, "absent", None)),
    (LLAMA, {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}),
    (LLAMA, {"rope_parameters": "absent", "rope_theta": 10000.0, "rope_scaling": None}),
    (LLAMA, {"rope_parameters": "absent", "rope_theta": 500000.0}),
    (LLAMA, {"rope_parameters": "absent", "rope_scaling": {"type": "linear", "factor": 4.0}}),
    (LLAMA, {"rope_parameters": "absent", "rope_scaling": {**ROPE, "rope_theta": 5e5}}),
    (LLAMA, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    (LLAMA, {"rope_scaling": "linear"}),
    (LLAMA, {"partial_rotary_factor": 0.5}),
    (LLAMA, {"is_causal": False}),
    *((LLAMA, {"attention_bias": value}) for value in (True, "absent")),
    *((LLAMA, {"head_dim": width}) for width in (16, None, "absent")),
    *((LLAMA, {"num_key_value_heads": heads}) for heads in (1, 3, None, "absent")),
    *((LLAMA, {"hidden_act": name}) for name in ("gelu", "swish", "absent")),
    (LLAMA, {"num_hidden_layers": 3}),
    (LLAMA, {"tie_word_embeddings": True}),
    *((QWEN3, {"head_dim": width}) for width in (None, "absent")),
    (QWEN3, {"attention_bias": True}),
    (QWEN3, {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0, "layer_types": "absent"}),
    (QWEN3, {"layer_types": ["sliding_attention"] * 2, "sliding_window": 3}),
]


@pytest.mark.parametrize(("values", "changes"), CHANGES, ids=str)
def test_a_changed_config_is_refused_or_means_the_same(
    tmp_path: Path, values: dict[str, Any], changes: dict[str, Any]
) -> None:
    save_theirs(tmp_path, values)
    change_json(tmp_path / "config.json", **changes)
    try:
        ours = load_model(tmp_path)
    except LmcoreError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert str(tmp_path) in refusal
        assert "\n" not in refusal
        return
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert largest_difference(ours, theirs) < 1e-4


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        (GPT2, {"model_type": "mamba"}, r"config\.json is neither a model of format 1 nor Hugging Face's gpt2, llama"),
        (GPT2, {"activation_function": "relu"}, r"activation_function='relu': lmcore's blocks compute .*'gelu_new'"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx=True: .*=False alone"),
        (GPT2, {"layer_norm_epsilon": "1e-5"}, r"layer_norm_epsilon='1e-5': "),
        (GPT2, {"n_head": 3}, r"config\.json: .*model\.d_model=32: must be divisible by model\.n_heads=3"),
        (GPT2, {"n_layer": "absent"}, r"config\.json has no n_layer"),
        (GPT2, {"tie_word_embeddings": False}, r"the weights lack lm_head\.weight, which config\.json asks for"),
        (GPT2, {"n_layer": 1}, r"no place for transformer\.h\.1\.attn\.c_attn\.bias, .* and 9 more among the weights"),
        (GPT2, {"n_layer": 3}, r"the weights lack transformer\.h\.2\.attn\.c_attn\.bias, .* and 9 more"),
        (GPT2, {"n_inner": 40}, r"h\.0\.mlp\.c_fc\.weight has the shape \[32, 128\], config\.json makes it \[32, 40\]"),
        (GPT2, {"quantization_config": {"bits": 4}}, r"quantization_config=\{'bits': 4\}: unknown to lmcore"),
        (
            LLAMA,
            {"rope_parameters": {**ROPE, "rope_type": "yarn"}},
            r"'yarn'.*rope_type='default' alone",
        ),
        (LLAMA, {"rope_scaling": {"type": "linear"}}, r"rope_scaling=\{'type': 'linear'\}: "),
        (LLAMA, {"is_causal": False}, r"is_causal=False: "),
        (LLAMA, {"attention_bias": True}, r"mlp_bias=False: lmcore's blocks compute mlp_bias=True alone"),
        (LLAMA, {"num_hidden_layers": None}, r"num_hidden_layers is empty"),
        (QWEN3, {"head_dim": 16}, r"q_norm\.weight has the shape \[8\]|q_proj\.weight has the shape \[32, 32\]"),
        (QWEN3, {"layer_types": ["sliding_attention"] * 2}, r"layer_types=\['sliding_attention', "),
        (QWEN3, {"use_sliding_window": True}, r"use_sliding_window=True: "),
    ],
)
def test_what_our_blocks_do_not_compute_is_named(
    tmp_path: Path, values: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    save_theirs(tmp_path, values)
    change_json(tmp_path / "config.json", **changes)
    with pytest.raises(LmcoreError, match=message):
        load_model(tmp_path)


def test_a_tied_model_with_a_head_of_its_own_is_not_taken_for_tied(tmp_path: Path) -> None:
    save_theirs(tmp_path, LLAMA)
    change_json(tmp_path / "config.json", tie_word_embeddings=True)
    with pytest.raises(ArtifactError, match=r"tie_word_embeddings is true, but lm_head\.weight is not the embedding"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["h.0.attn.bias.copy", "h.0.attn.rotary", "extra"])
def test_other_tensors_among_the_weights_are_named(tmp_path: Path, name: str) -> None:
    save_theirs(tmp_path, GPT2)
    path = tmp_path / "model.safetensors"
    save_file({**load_file(path), name: torch.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=f"config.json has no place for {re.escape(name)} among the weights"):
        load_model(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    theirs = save_theirs(tmp_path, GPT2)
    with torch.no_grad():
        theirs.transformer.wpe.weight[20] = value
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match=r"transformer\.wpe\.weight holds numbers that are not finite"):
        load_model(tmp_path)


def test_more_layers_than_weights_are_refused_at_once(tmp_path: Path) -> None:
    save_theirs(tmp_path, GPT2)
    change_json(tmp_path / "config.json", n_layer=10**9)
    with pytest.raises(ArtifactError, match=r"config.json asks for 1000000000 layers, and there are \d+ weights"):
        load_model(tmp_path)


def test_the_rotary_base_is_written_for_all_versions_of_transformers() -> None:
    params = TINY_MODEL.model_copy(update={"rope_base": 5e5})
    values = config_values(params, 50, "qwen3")
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] == 5e5


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    save_theirs(tmp_path, GPT2)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "transformer.wpe.weight": weights["transformer.wpe.weight"].to(torch.int8)}, path)
    with pytest.raises(ArtifactError, match=r"transformer\.wpe\.weight is of type I8"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged"),
        (lambda path: path.write_text(""), "is damaged"),
    ],
)
def test_missing_and_damaged_weights_are_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    save_theirs(tmp_path, GPT2)
    damage(tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match=rf"^{tmp_path}/model\.safetensors {message}") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_importing_needs_no_transformers(tmp_path: Path) -> None:
    save_theirs(tmp_path, GPT2)
    program = f"""
import sys
from pathlib import Path
from lmcore.model.save_load import load_model
load_model(Path({str(tmp_path)!r}))
print("transformers" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
