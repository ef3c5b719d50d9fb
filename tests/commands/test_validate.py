"""`lmcore validate`: transformers and lmcore on one prompt."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import GPT2_MODEL, TINY_MODEL, tokenizer_params

import lmcore.commands.validate
from lmcore.commands.validate import validate_model
from lmcore.errors import LmcoreError, ParameterError
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.model.save_load import load_model, save_model
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(tokenizer_params("bpe", vocab_size=270), [["the cat sat on the mat"]])
GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 48}
LLAMA = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 48,
}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "gpt2, untied": ("gpt2", {**GPT2, "tie_word_embeddings": False}),
    "llama": ("llama", LLAMA),
    "llama, biases, wide heads": ("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "qwen3, tied": ("qwen3", {**LLAMA, "head_dim": 16, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
}
OURS = {"qwen3": TINY_MODEL, "gpt2": GPT2_MODEL, "documents": TINY_MODEL.model_copy(update={"document_mask": True})}


def save_theirs(folder: Path, kind: str, values: dict[str, Any]) -> None:
    """A random model of transformers, far from its initial values, with a tokenizer."""
    config = transformers.AutoConfig.for_model(kind, vocab_size=TOKENIZER.vocab_size, **values)
    network = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.empty(weight.shape).normal_(0.0, 0.2, generator=generator))
    network.save_pretrained(folder)
    TOKENIZER.save(folder)


def save_ours(folder: Path, params: ModelParams) -> None:
    model = GPT(params, TOKENIZER.vocab_size, seed=5, end_of_text=TOKENIZER.end_of_text)
    save_model(folder, model, {})
    TOKENIZER.save(folder)


def test_both_go_on_greedily_whatever_the_folder_asks_for(tmp_path: Path) -> None:
    save_theirs(tmp_path, "gpt2", GPT2)
    plain = validate_model(str(tmp_path), "the cat and the")
    asked = {"repetition_penalty": 5.0, "eos_token_id": TOKENIZER.encode(plain.continuations[1])[1], "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(asked))
    assert validate_model(str(tmp_path), "the cat and the") == plain


def test_another_models_tokenizer_is_one_line(tmp_path: Path) -> None:
    save_theirs(tmp_path, "gpt2", GPT2)
    train_tokenizer(tokenizer_params("bpe", vocab_size=290), [["zzzz yyyy xxxx wwww vvvv uuuu"]]).save(tmp_path)
    with pytest.raises(LmcoreError, match=r"its tokenizer has the id \d+, and the model \d+ tokens"):
        validate_model(str(tmp_path), "zzzz yyyy xxxx wwww vvvv uuuu")


def test_two_documents_are_no_prompt_for_a_document_mask(tmp_path: Path) -> None:
    save_ours(tmp_path, OURS["documents"])
    with pytest.raises(ParameterError, match=r"--prompt: several documents"):
        validate_model(str(tmp_path), "the<|endoftext|>cat")


@pytest.mark.parametrize(("kind", "values"), THEIRS.values(), ids=THEIRS)
def test_theirs_is_the_same_in_both(tmp_path: Path, kind: str, values: dict[str, Any]) -> None:
    save_theirs(tmp_path, kind, values)
    validation = validate_model(str(tmp_path), "the cat and the")
    assert validation.difference.is_rounding
    assert validation.difference.found < 1e-4
    assert validation.tokenizer == "cut alike by both tokenizers"
    assert len(set(validation.next_tokens)) == len(set(validation.continuations)) == 1
    assert len(TOKENIZER.encode(validation.continuations[0])) >= 10


@pytest.mark.parametrize("params", OURS.values(), ids=OURS)
def test_ours_goes_through_its_export(tmp_path: Path, params: ModelParams) -> None:
    save_ours(tmp_path, params)
    before = sorted(tmp_path.iterdir())
    validation = validate_model(str(tmp_path), "the cat")
    assert validation.difference.is_rounding
    assert len(set(validation.continuations)) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_what_differs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_theirs(tmp_path, "llama", LLAMA)

    def load_otherwise(folder: Path) -> GPT:
        model = load_model(folder)
        model.params = model.params.model_copy(update={"rope_base": 10_500.0})
        return model

    monkeypatch.setattr(lmcore.commands.validate, "load_model", load_otherwise)
    validation = validate_model(str(tmp_path), "the cat and the")
    assert not validation.difference.is_rounding
    assert list(validation.describe())[-1].startswith("not the same")


def test_an_empty_prompt_begins_a_document_and_a_long_one_is_refused(tmp_path: Path) -> None:
    save_ours(tmp_path, TINY_MODEL)
    assert validate_model(str(tmp_path), "").prompt_tokens == 1
    with pytest.raises(ParameterError, match=r"^--prompt: it has \d+ tokens, and the model's context only 16$"):
        validate_model(str(tmp_path), "the cat " * 20)


def test_blocks_that_transformers_has_not_are_named(tmp_path: Path) -> None:
    save_ours(tmp_path, TINY_MODEL.model_copy(update={"mlp": "relu2"}))
    with pytest.raises(LmcoreError, match=r"no Hugging Face architecture has model\.mlp=relu2"):
        validate_model(str(tmp_path), "the")
    with pytest.raises(ParameterError, match=f"^{tmp_path}/none: {tmp_path}/none is not a folder; it begins"):
        validate_model(f"{tmp_path}/none", "the")


def test_the_command(tmp_path: Path) -> None:
    save_theirs(tmp_path, "gpt2", GPT2)
    command = [sys.executable, "-m", "lmcore", "validate", str(tmp_path), "--prompt", "the cat"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "prompt",
        "logits",
        "next token",
        "lmcore continues",
        "transformers continues",
        "the same",
    ]
    assert json.loads(lines[3].partition(":")[2]) == json.loads(lines[4].partition(":")[2])
