"""The exported folder, read by transformers: the same weights, logits, ids and text as ours."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from export_models import CHOICES, CLASSIC, MODERN, write_model
from torch import Tensor

import lmcore.export.hugging_face
from lmcore.errors import ArtifactError, LmcoreError, ParameterError
from lmcore.export.hugging_face import export_model
from lmcore.export.params import ExportParams
from lmcore.export.transformers_reference import import_transformers
from lmcore.model.gpt import GPT
from lmcore.model.hf_mapping import named_weights
from lmcore.model.params import DiffusionParams
from lmcore.model.save_load import load_model
from lmcore.tokenizer.load import load_tokenizer

FLOAT32 = ExportParams(name="tiny", dtype="float32", gguf=None)
CORPUS = {"source": "stdlib", "licence": "PSF-2.0"}


def load_with_transformers(folder: Path) -> Any:
    """The model, and what the loader has to say about its weights."""
    return import_transformers().AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_transformers_loads_and_computes_the_same(tmp_path: Path, choices: dict[str, Any]) -> None:
    model = write_model(tmp_path / "gpt", choices)
    metrics = export_model(FLOAT32, tmp_path / "gpt", tmp_path / "export", corpus=CORPUS, figures={})
    assert metrics["max_abs_logit_difference"] < 1e-4
    assert metrics["parameters"] == model.count_parameters()
    assert metrics["bytes"] == (tmp_path / "export" / "model.safetensors").stat().st_size
    theirs, report = load_with_transformers(tmp_path / "export")
    assert not any(report.values()), report
    assert metrics["architecture"] == type(theirs).__name__
    prompt = torch.tensor([[model.vocab_size - 1, 100, 101]])
    expected = continue_greedily(model, prompt, 12)
    found = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, eos_token_id=None)
    assert found.tolist() == expected


def test_a_model_of_single_documents_is_exported_as_one(tmp_path: Path) -> None:
    """Among so many random tokens are ends of text, past which transformers sees and ours does not."""
    model = write_model(tmp_path / "gpt", {**MODERN, "document_mask": True, "context_length": 1024})
    metrics = export_model(FLOAT32, tmp_path / "gpt", tmp_path / "export", corpus=CORPUS, figures={})
    assert metrics["max_abs_logit_difference"] < 1e-3
    card = (tmp_path / "export" / "README.md").read_text()
    assert "transformers knows nothing of that: give it one document in a sequence" in card
    theirs, _ = load_with_transformers(tmp_path / "export")
    assert model.end_of_text == theirs.config.eos_token_id
    one = torch.tensor([[model.end_of_text, 100, 101, 102]])
    with torch.inference_mode():
        torch.testing.assert_close(model(one)[0], theirs(one).logits, atol=1e-4, rtol=1e-4)
        two = torch.cat((one, one), dim=1)
        assert not torch.allclose(model(two)[0], theirs(two).logits, atol=1e-2)


def test_a_model_with_masks_is_exported_without_them(tmp_path: Path) -> None:
    masks = {**DiffusionParams().model_dump(), "block_size": 4}
    model = write_model(tmp_path / "gpt", {**MODERN, "diffusion": masks})
    metrics = export_model(FLOAT32, tmp_path / "gpt", tmp_path / "export", corpus=CORPUS, figures={})
    assert metrics["parameters"] == model.count_parameters() - model.params.d_model
    theirs, report = load_with_transformers(tmp_path / "export")
    assert not any(report.values()), report
    prompt = torch.tensor([[1, 100, 101]])
    with torch.inference_mode():
        torch.testing.assert_close(model(prompt)[0], theirs(prompt).logits, atol=1e-4, rtol=1e-4)


def continue_greedily(model: GPT, tokens: Tensor, count: int) -> list[list[int]]:
    """Append the likeliest token `count` times, each from the whole text."""
    with torch.inference_mode():
        for _ in range(count):
            tokens = torch.cat((tokens, model(tokens)[0][:, -1:].argmax(-1)), dim=1)
    return [[int(token) for token in row] for row in tokens]


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_reserved_tokens_are_exported(tmp_path: Path, kind: str) -> None:
    reserved = ["<|user|>", "<|assistant|>"]
    model = write_model(tmp_path / "gpt", MODERN, kind, reserved)
    export_model(FLOAT32, tmp_path / "gpt", tmp_path / "export", corpus=CORPUS, figures={})
    theirs = import_transformers().AutoTokenizer.from_pretrained(tmp_path / "export")
    assert theirs.convert_tokens_to_ids(reserved) == [model.vocab_size - 2, model.vocab_size - 1]
    assert theirs.all_special_tokens == ["<|endoftext|>", *reserved]
    assert load_tokenizer(tmp_path / "export").artefact == load_tokenizer(tmp_path / "gpt").artefact


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_tokenizer_and_example_of_the_card_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    write_model(tmp_path / "models" / "gpt", MODERN, kind)
    monkeypatch.chdir(tmp_path)
    export_model(
        FLOAT32, Path("models/gpt"), Path("models/export"), corpus=CORPUS, figures={"evaluate": {"val_loss": 5.5}}
    )
    card = Path("models/export/README.md").read_text(encoding="utf-8")
    assert "| 5.5 |" in card
    example = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert example
    names: dict[str, Any] = {}
    exec(example[1], names)
    assert names["tokens"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert capsys.readouterr().out
    ours, theirs = load_tokenizer(Path("models/gpt")), names["tokenizer"]
    assert theirs("<|endoftext|>def")["input_ids"] == [ours.end_of_text, *ours.encode("def")]
    assert theirs.model_max_length == 48


def test_same_model_same_bytes(tmp_path: Path) -> None:
    write_model(tmp_path / "gpt", CLASSIC)
    first = export_model(FLOAT32, tmp_path / "gpt", tmp_path / "export", corpus=CORPUS, figures={})
    files = read_files(tmp_path / "export")
    assert export_model(FLOAT32, tmp_path / "gpt", tmp_path / "export", corpus=CORPUS, figures={}) == first
    assert read_files(tmp_path / "export") == files
    assert set(files) == {
        *("config.json", "generation_config.json", "model.safetensors", "README.md"),
        *("tokenizer.json", "tokenizer_config.json"),
    }


@pytest.mark.parametrize(("dtype", "smallest", "largest"), [("bfloat16", 1e-2, 2.0), ("float16", 1e-3, 0.2)])
def test_rounded_weights_cost_what_is_reported(tmp_path: Path, dtype: Any, smallest: float, largest: float) -> None:
    write_model(tmp_path / "gpt", MODERN)
    metrics = export_model(
        ExportParams(name="half", dtype=dtype, gguf=None),
        tmp_path / "gpt",
        tmp_path / "export",
        corpus=CORPUS,
        figures={},
    )
    assert smallest < metrics["max_abs_logit_difference"] < largest
    assert json.loads((tmp_path / "export" / "config.json").read_text())["dtype"] == dtype
    assert load_with_transformers(tmp_path / "export")[0].dtype == getattr(torch, dtype)


def test_choices_without_an_architecture_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "gpt", {**CLASSIC, "position": "rope"})
    with pytest.raises(ParameterError, match=r"has model\.position=rope .* set model\.position=learned \(gpt2\), and"):
        export_model(FLOAT32, tmp_path / "gpt", tmp_path / "export", corpus=CORPUS, figures={})
    assert not (tmp_path / "export").exists()


def test_weights_in_the_wrong_place_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "gpt", MODERN)
    gate, up = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
    weights = named_weights(load_model(tmp_path / "gpt"), "llama")
    for message, broken in {
        "logits differ from the trained model's by": {**weights, gate: weights[up], up: weights[gate]},
        "does not load all of it.*missing_keys.*mlp.up_proj": {name: weights[name] for name in weights if name != up},
        "does not load all of it.*unexpected_keys.*extra": {**weights, "model.extra.weight": torch.ones(2)},
    }.items():
        monkeypatch.setattr(lmcore.export.hugging_face, "named_weights", lambda *_, broken=broken: broken)
        with pytest.raises(ArtifactError, match=message):
            export_model(FLOAT32, tmp_path / "gpt", tmp_path / "export", corpus=CORPUS, figures={})
        assert [path.name for path in tmp_path.iterdir()] == ["gpt"]


def test_another_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "gpt", MODERN)
    tokenizer = load_tokenizer(tmp_path / "gpt")
    monkeypatch.setattr(type(tokenizer), "encode", lambda self, text: [self.end_of_text, *text.encode()])
    with pytest.raises(ArtifactError, match=r"the ids of '': \[\] in transformers, \[256\] in lmcore"):
        export_model(FLOAT32, tmp_path / "gpt", tmp_path / "export", corpus=CORPUS, figures={})
    monkeypatch.undo()
    write_model(tmp_path / "bpe", MODERN, "bpe")
    (tmp_path / "bpe" / "tokenizer.json").rename(tmp_path / "gpt" / "tokenizer.json")
    with pytest.raises(ArtifactError, match="the vocabulary size: 300 in transformers, 257 in lmcore"):
        export_model(FLOAT32, tmp_path / "gpt", tmp_path / "export", corpus=CORPUS, figures={})


def test_without_transformers_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "gpt", CLASSIC)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(LmcoreError, match=r"pip install -e '\.\[hf\]'"):
        export_model(FLOAT32, tmp_path / "gpt", tmp_path / "export", corpus=CORPUS, figures={})


def test_the_trainings_curve_lies_beside_the_card(tmp_path: Path) -> None:
    write_model(tmp_path / "gpt", MODERN)
    curve = tmp_path / "training.svg"
    with pytest.raises(ArtifactError, match=r"training\.svg is missing: run dvc repro train"):
        export_model(FLOAT32, tmp_path / "gpt", tmp_path / "export", corpus=CORPUS, figures={}, curve=curve)
    curve.write_text("<svg/>")
    export_model(FLOAT32, tmp_path / "gpt", tmp_path / "export", corpus=CORPUS, figures={}, curve=curve)
    assert (tmp_path / "export" / "training.svg").read_text() == "<svg/>"
    assert "](training.svg)" in (tmp_path / "export" / "README.md").read_text()
