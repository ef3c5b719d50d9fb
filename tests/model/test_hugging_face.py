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
from lmcore.files import sha256_file
from lmcore.model.folder import fingerprint_weights, load_model
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
    model, architecture = load_model(tmp_path), values["model_type"]
    named = named_weights(model, architecture)
    back = our_weights(model, architecture, {"lm_head.weight": model.head.weight, **named})
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], weight) for name, weight in model.state_dict().items())


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
    with pytest.raises(ArtifactError, match=rf"transformers does not load or compute it .*{pieces[2].name}"):
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
    save_file({**weights, **constants}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    change_json(tmp_path / "config.json", n_inner="absent", tie_word_embeddings="absent", dtype="absent")
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
        (GPT2, {"layer_norm_epsilon": 1e-6}, r"layer_norm_epsilon=1e-06: .*=1e-05 alone"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, r"do not compute what transformers does .* differ by"),
        (GPT2, {"n_head": 3}, r"transformers does not load or compute it \(.*n_head|num_heads"),
        (GPT2, {"tie_word_embeddings": False}, r"does not load all of it: .*missing_keys.*lm_head"),
        (GPT2, {"n_layer": 1}, r"does not load all of it: .*unexpected_keys.*h\.1"),
        (LLAMA, {"rms_norm_eps": 1e-5}, r"config\.json: rms_norm_eps=1e-05"),
        (LLAMA, {"rope_parameters": {**ROPE, "rope_theta": 5e5}}, r"rope_parameters=.*500000.*10000\.0"),
        (LLAMA, {"is_causal": False}, r"the logits differ by"),
        (LLAMA, {"attention_bias": True}, r"attention_bias|missing_keys"),
        (QWEN3, {"head_dim": 16}, r"does not load"),
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
    with pytest.raises(ArtifactError, match="do not compute what transformers does"):
        load_model(tmp_path)


def test_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    theirs = save_theirs(tmp_path, GPT2)
    with torch.no_grad():
        theirs.transformer.wpe.weight[20] = float("nan")  # in the second of the compared batches only
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="the logits differ by nan"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_text(""),
    ],
)
def test_missing_and_damaged_weights_are_named(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    save_theirs(tmp_path, GPT2)
    damage(tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match=rf"^{tmp_path}: transformers does not load or compute it \(") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
