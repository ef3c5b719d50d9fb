"""Models of transformers, with random weights, read as ours: the same logits, and whatever differs refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lmcore.errors import ArtifactError, LmcoreError
from lmcore.model.folder import fingerprint_weights, list_weights, load_model
from lmcore.model.gpt import GPT
from lmcore.model.hugging_face import named_weights, our_weights

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
    "qwen3, grouped": QWEN3,
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
    model = load_model(tmp_path)
    architecture = values["model_type"]
    back = our_weights(model, architecture, named_weights(model, architecture), "memory")
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], weight) for name, weight in model.state_dict().items())


def test_pieces_are_one_model(tmp_path: Path) -> None:
    theirs = save_theirs(tmp_path, LLAMA, max_shard_size="20KB")
    pieces = list_weights(tmp_path)
    assert len(pieces) > 2
    assert largest_difference(load_model(tmp_path), theirs) < 1e-4
    before = fingerprint_weights(tmp_path)
    weights = load_file(pieces[1])
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, pieces[1])
    assert fingerprint_weights(tmp_path) != before
    pieces[2].unlink()
    with pytest.raises(ArtifactError, match=rf"{pieces[2].name} does not exist: save it there with .*save_pretrained"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"index\.json is damaged \(no weight_map\)"):
        load_model(tmp_path)


def test_published_gpt2_has_no_prefix_and_constants_among_its_weights(tmp_path: Path) -> None:
    theirs = save_theirs(tmp_path, GPT2)
    weights = {
        name.removeprefix("transformer."): weight for name, weight in load_file(list_weights(tmp_path)[0]).items()
    }
    constants = {f"h.{block}.attn.bias": torch.ones(1, 1, 24, 24).tril() for block in range(2)}
    save_file({**weights, **constants}, tmp_path / "model.safetensors")
    change_json(tmp_path / "config.json", n_inner="absent", tie_word_embeddings="absent", dtype="absent")
    assert largest_difference(load_model(tmp_path), theirs) < 1e-4


def test_llama_as_version_4_wrote_it(tmp_path: Path) -> None:
    theirs = save_theirs(tmp_path, LLAMA)
    absent = dict.fromkeys(["rope_parameters", "num_key_value_heads", "head_dim", "mlp_bias"], "absent")
    change_json(tmp_path / "config.json", **absent, rope_theta=10000.0, rope_scaling=None)
    assert largest_difference(load_model(tmp_path), theirs) < 1e-4
    change_json(tmp_path / "config.json", rope_theta=500000.0)
    with pytest.raises(ArtifactError, match=r"rope_parameters=.*500000.*: lmcore's blocks compute .*10000\.0"):
        load_model(tmp_path)


def test_lower_precision_is_read_as_it_is(tmp_path: Path) -> None:
    save_theirs(tmp_path, QWEN3).bfloat16().save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert largest_difference(model, theirs) < 1e-4


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        (GPT2, {"model_type": "mamba"}, r"config\.json: model_type='mamba': must be one of gpt2, llama, qwen3"),
        (GPT2, {"activation_function": "relu"}, r"activation_function='relu': lmcore's blocks compute .*'gelu_new'"),
        (GPT2, {"layer_norm_epsilon": 1e-6}, r"layer_norm_epsilon=1e-06: .*=1e-05 alone"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx=True"),
        (GPT2, {"n_layer": "absent"}, r"config\.json: model\.n_layers is empty"),
        (GPT2, {"n_embd": 33}, r"model\.d_model=33: must be divisible by model\.n_heads=4"),
        (GPT2, {"vocab_size": None}, r"vocab_size=None: must be a number of tokens"),
        (GPT2, {"vocab_size": 60}, r"do not fit .*config\.json .*size mismatch for token_embedding"),
        (GPT2, {"quantization_config": {"bits": 4}}, r"quantization_config=.*: lmcore's blocks compute .*=None"),
        (GPT2, {"tie_word_embeddings": False}, r" lacks lm_head\.weight"),
        (GPT2, {"n_layer": 1}, r"holds the unknown transformer\.h\.1\.attn\.c_attn\.bias, transformer.*, \.\.\."),
        (LLAMA, {"num_hidden_layers": 3}, r" lacks model\.layers\.2\.input_layernorm\.weight, .*, \.\.\."),
        (LLAMA, {"rms_norm_eps": 1e-5}, r"rms_norm_eps=1e-05"),
        (LLAMA, {"attention_bias": True}, r"attention_bias=True"),
        (LLAMA, {"head_dim": 16}, r"head_dim=16: .*head_dim=8 alone"),
        (LLAMA, {"hidden_act": "gelu"}, r"hidden_act='gelu'"),
        (QWEN3, {"head_dim": "absent"}, r"head_dim=128"),
        (QWEN3, {"attention_bias": True}, r"attention_bias=True"),
        (QWEN3, {"use_sliding_window": True}, r"use_sliding_window=True"),
        (QWEN3, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, r"rope_parameters=.*yarn"),
    ],
)
def test_what_our_blocks_do_not_compute_is_refused(
    tmp_path: Path, values: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    save_theirs(tmp_path, values)
    change_json(tmp_path / "config.json", **changes)
    with pytest.raises(LmcoreError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"model\.safetensors does not exist: save it there with .*save_pretrained"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"model\.safetensors is damaged"),
    ],
)
def test_missing_and_damaged_weights_are_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    save_theirs(tmp_path, GPT2)
    damage(tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match=message):
        load_model(tmp_path)
