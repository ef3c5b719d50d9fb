"""The GGUF file: read by gguf, and where llama-cpp-python is installed, run by llama.cpp."""

import inspect
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from export_models import CHOICES, CLASSIC, MODERN, TEXT, write_model
from imports import ROOT
from tiktoken_ext import openai_public

from lmcore.errors import ArtifactError, ParameterError
from lmcore.export.hugging_face import export_model
from lmcore.export.llama_cpp import GGUF_TYPES, GgufType, name_file
from lmcore.export.llama_cpp_tokenizer import CL100K, find_pre_tokenizer
from lmcore.export.params import ExportParams
from lmcore.model.hf_architecture import hugging_face_architecture
from lmcore.model.hf_mapping import named_weights
from lmcore.model.save_load import load_model
from lmcore.params import parse_section
from lmcore.tokenizer.base import SAMPLE_TEXTS
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokenizer.pretrained import portable_pattern

NUMBERS = list(GGUF_TYPES)


def export(folder: Path, numbers: str, name: str = "tiny") -> tuple[Path, dict[str, Any]]:
    params = ExportParams(name=name, dtype="float32", gguf=numbers)
    metrics = export_model(params, folder / "gpt", folder / "export", corpus={}, figures={})
    return folder / "export" / name_file(name), metrics


def read_fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_every_weight_is_there(tmp_path: Path, choices: dict[str, Any], numbers: str) -> None:
    """By names and an order of rows that are written down here once more."""
    write_model(tmp_path / "gpt", choices)
    path, metrics = export(tmp_path, numbers)
    assert metrics["gguf_bytes"] == path.stat().st_size
    tensors = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors
    }
    model = load_model(tmp_path / "gpt")
    architecture = hugging_face_architecture(model.params)
    assert architecture
    assert len(tensors) == len(named_weights(model, architecture))
    width, heads, keys = model.params.head_width, model.params.n_heads, model.params.kv_heads
    weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
    tolerance = {"f32": 0.0, "f16": 1e-3, "q8_0": 1e-2}[numbers]
    np.testing.assert_allclose(tensors["token_embd.weight"], weights["token_embedding.weight"], atol=tolerance)
    np.testing.assert_allclose(
        tensors["blk.1.ffn_down.weight"], weights["blocks.1.mlp.projection.weight"], atol=tolerance
    )
    np.testing.assert_array_equal(tensors["output_norm.weight"], weights["final_norm.weight"])
    queries = weights["blocks.1.attention.qkv.weight"][: heads * width]
    if architecture == "gpt2":
        found = tensors["blk.1.attn_qkv.weight"][: heads * width]
    else:
        found = tensors["blk.1.attn_q.weight"]
        values = weights["blocks.1.attention.qkv.weight"][(heads + keys) * width :]
        np.testing.assert_allclose(tensors["blk.1.attn_v.weight"], values, atol=tolerance)
    if architecture == "llama":
        half = width // 2
        queries = np.stack(
            [
                queries[head * width + place + side]
                for head in range(heads)
                for place in range(half)
                for side in (0, half)
            ]
        )
    np.testing.assert_allclose(found, queries, atol=tolerance)
    largest = metrics["gguf_max_abs_weight_difference"]
    assert largest == 0 if numbers == "f32" else 0 < largest < tolerance


def test_the_shape_and_the_tokenizer_are_there(tmp_path: Path) -> None:
    choices = {**MODERN, "qk_norm": True, "n_kv_heads": 2, "d_head": 16, "rope_base": 1e6, "norm_epsilon": 1e-5}
    write_model(tmp_path / "gpt", choices, "bpe", ["<|user|>"])
    path, _ = export(tmp_path, "f16", "My model/2")
    assert path.name == "My-model-2.gguf"
    fields, tokenizer = read_fields(path), load_tokenizer(tmp_path / "gpt")
    expected = {
        "general.architecture": "qwen3",
        "general.name": "My model/2",
        "general.file_type": 1,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 16,
        "qwen3.rope.freq_base": 1e6,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.eos_token_id": tokenizer.end_of_text,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {name: fields[name] for name in expected} == expected
    definition = json.loads(tokenizer.artefact)
    assert fields["tokenizer.ggml.tokens"] == list(definition["model"]["vocab"])
    assert fields["tokenizer.ggml.merges"] == [" ".join(pair) for pair in definition["model"]["merges"]]
    types = fields["tokenizer.ggml.token_type"]
    assert [token for token, kind in enumerate(types) if kind == 3] == sorted(tokenizer.special_tokens.values())


@pytest.mark.parametrize("numbers", NUMBERS)
def test_the_same_model_gives_the_same_bytes(tmp_path: Path, numbers: str) -> None:
    write_model(tmp_path / "gpt", MODERN)
    path, metrics = export(tmp_path, numbers)
    content = path.read_bytes()
    assert export(tmp_path, numbers) == (path, metrics)
    assert path.read_bytes() == content


def test_a_file_that_holds_something_else_never_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "gpt", MODERN)
    dequantize = gguf.dequantize
    monkeypatch.setattr(gguf, "dequantize", lambda data, kind: dequantize(data, kind) * np.float32(1.01))
    with pytest.raises(
        ArtifactError, match=r"tiny\.gguf: .* read by gguf differs by .*, and rounding to q8_0 explains"
    ):
        export(tmp_path, "q8_0")
    assert not (tmp_path / "export").exists()


def test_rows_that_are_no_multiple_of_a_block_are_f16(tmp_path: Path) -> None:
    write_model(tmp_path / "gpt", {**CLASSIC, "d_ff": 40})
    path, _ = export(tmp_path, "q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert types["blk.0.ffn_up.weight"] == "Q8_0"
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["position_embd.weight"] == types["blk.0.attn_norm.weight"] == "F32"


def test_published_patterns_have_their_names() -> None:
    assert find_pre_tokenizer(portable_pattern(openai_public.r50k_pat_str)).name == "gpt-2"
    assert CL100K in inspect.getsource(openai_public.cl100k_base).replace("{1,3}+", "{1,3}")
    assert find_pre_tokenizer(CL100K).name == "llama-bpe"
    with pytest.raises(ParameterError, match=r"llama\.cpp knows pre-tokenizers by name, and none that cuts"):
        find_pre_tokenizer(r"\p{L}+|[^\p{L}]+")


def test_what_is_cut_otherwise_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "gpt", MODERN, "bpe")
    export(tmp_path, "f32")
    assert "llama.cpp cuts numbers of three digits and more otherwise than this tokenizer" in capsys.readouterr().err


def test_characters_are_sentence_pieces(tmp_path: Path) -> None:
    write_model(tmp_path / "gpt", MODERN, "char", ["<|user|>"])
    fields = read_fields(export(tmp_path, "f32")[0])
    assert fields["tokenizer.ggml.model"] == "llama"
    names, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    spelt = [name for name, kind in zip(names, types, strict=True) if kind == 6]
    assert spelt == [f"<0x{byte:02X}>" for byte in range(256)]
    assert names[-2:] == ["<|endoftext|>", "<|user|>"]


@pytest.mark.parametrize("text", ["a \u2581 b", "ab"])
def test_characters_without_a_space_of_their_own_are_refused(tmp_path: Path, text: str) -> None:
    write_model(tmp_path / "gpt", MODERN, "char", text=[text])
    with pytest.raises(ParameterError, match=r"^export\.gguf: llama\.cpp writes a space as ▁ \(U\+2581\), and this"):
        export(tmp_path, "f32")


def load_with_llama_cpp(path: Path) -> Any:
    """In main memory, in fp32, telling nothing."""
    llama_cpp = pytest.importorskip("llama_cpp")
    return llama_cpp.Llama(str(path), n_ctx=48, logits_all=True, n_threads=1, type_k=0, type_v=0, verbose=False)


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_llama_cpp_computes_the_same(tmp_path: Path, choices: dict[str, Any]) -> None:
    model = write_model(tmp_path / "gpt", choices)
    theirs = load_with_llama_cpp(export(tmp_path, "f32")[0])
    tokens = torch.randint(model.vocab_size, (1, 40), generator=torch.Generator().manual_seed(2))
    theirs.eval(tokens[0].tolist())
    with torch.inference_mode():
        expected = model(tokens)[0][0].numpy()
    assert np.abs(theirs.scores[:40] - expected).max() < 1e-2 * np.abs(expected).max()
    assert (theirs.scores[:40].argmax(-1) == expected.argmax(-1)).mean() > 0.9


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("bpe", {"digits": 1}), ("bpe", {"digits": 2}), ("bpe", {"digits": 3}), ("byte", {}), ("char", {})],
    ids=str,
)
def test_llama_cpp_cuts_alike(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    write_model(tmp_path / "gpt", MODERN, kind, text=[*TEXT, *SAMPLE_TEXTS[:-1]], **settings)
    theirs, ours = load_with_llama_cpp(export(tmp_path, "f32")[0]), load_tokenizer(tmp_path / "gpt")
    for text in SAMPLE_TEXTS:
        if settings == {"digits": 2} and "345" in text:
            continue
        found = theirs.tokenize(text.encode(), add_bos=False, special=False)
        assert found == ours.encode(text), text
        assert theirs.detokenize(found, special=True) == text.encode()


def test_a_type_is_added_by_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's bf16, of eight bits."""
    monkeypatch.setitem(GGUF_TYPES, "bf16", GgufType(32, 2.0**-8, 0.0))
    write_model(tmp_path / "gpt", MODERN)
    path, metrics = export(tmp_path, "bf16")
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds == {"F32", "BF16"}
    assert metrics["gguf_max_abs_weight_difference"] > 0
    with pytest.raises(ParameterError, match=r"export\.gguf='q8_1': must be .* did you mean q8_0\?"):
        parse_section(ExportParams, "export", {"name": "tiny", "dtype": "float32", "gguf": "q8_1"})


def test_every_type_is_documented() -> None:
    docs = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    assert f"NAME.gguf: {' | '.join(GGUF_TYPES)} (" in docs
