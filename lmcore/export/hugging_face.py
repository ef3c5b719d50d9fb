"""The trained model as a folder that Hugging Face transformers loads, compared with the original before it appears."""

import reprlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lmcore.errors import ArtifactError, ParameterError
from lmcore.export.card import CardFacts, render_card
from lmcore.export.llama_cpp import name_file, write_gguf
from lmcore.export.params import ExportParams
from lmcore.export.transformers_reference import (
    compute_ours,
    compute_theirs,
    draw_probes,
    import_transformers,
    load_with_transformers,
    measure_difference,
)
from lmcore.files import sha256_file, write_folder, write_json, write_text
from lmcore.model.gpt import GPT
from lmcore.model.hf_architecture import Architecture, explain_misfit, hugging_face_architecture
from lmcore.model.hf_mapping import MODEL_CLASSES, config_values, named_weights
from lmcore.model.params import ModelParams
from lmcore.model.save_load import load_model, read_lineage
from lmcore.model.weights import WHOLE, write_weights
from lmcore.tokenizer.base import END_OF_TEXT, SAMPLE_TEXTS, Tokenizer
from lmcore.tokenizer.load import load_tokenizer


def export_model(
    params: ExportParams,
    model_folder: Path,
    out: Path,
    *,
    corpus: Mapping[str, Any],
    figures: Mapping[str, Mapping[str, Any]],
    curve: Path | None = None,
) -> dict[str, Any]:
    """Write the Hugging Face folder `out`, once transformers has loaded it and computed what our model computes.

    For the model card: `corpus` is the download's manifest, `figures` are other stages' metrics by the stage's name,
    `curve` a picture of the training, which is copied; it leaves out what is absent.

    Returns the metrics architecture, parameters, bytes, max_abs_logit_difference (see `compare_logits`), and those of
    `write_gguf` if that file was asked for. Raises ParameterError for a model that transformers has no architecture
    for, ArtifactError when the written folder does not load or computes something else or `curve` is not there,
    LmcoreError without transformers.
    """
    if curve and not curve.exists():
        raise ArtifactError(f"{curve} is missing: run dvc repro train")
    model, tokenizer = load_model(model_folder).without_masks(), load_tokenizer(model_folder)
    architecture = require_architecture(model.params)
    lineage = read_lineage(model_folder)
    with write_folder(out) as folder:
        write_hugging_face(model, architecture, params.dtype, tokenizer, folder)
        compare_tokenizers(tokenizer, model.vocab_size, folder)
        gguf = folder / name_file(params.name)
        metrics = {
            "architecture": MODEL_CLASSES[architecture],
            "parameters": model.count_parameters(),
            "bytes": (folder / WHOLE).stat().st_size,
            **(write_gguf(model, architecture, tokenizer, params.gguf, params.name, gguf) if params.gguf else {}),
            "max_abs_logit_difference": compare_logits(model, params.dtype, folder),
        }
        facts = CardFacts(
            name=params.name,
            folder=out.as_posix(),
            model=model.params,
            vocab_size=model.vocab_size,
            tokenizer=tokenizer.kind,
            gguf=gguf.name if params.gguf else None,
            dtype=params.dtype,
            weights=sha256_file(model_folder / "model.safetensors"),
            corpus={} if "tokenized" in lineage else corpus,  # the download's text is not what it was trained on
            lineage=lineage,
            figures={**figures, "export": metrics},
            curve=curve.name if curve else None,
        )
        if curve:
            shutil.copyfile(curve, folder / curve.name)
        write_text(folder / "README.md", render_card(facts))
    return metrics


def write_hugging_face(model: GPT, architecture: Architecture, dtype: str, tokenizer: Tokenizer, folder: Path) -> None:
    """Write all that transformers needs: its configs, the weights rounded to `dtype`, the tokenizer."""
    transformers, end_of_text = import_transformers(), tokenizer.end_of_text
    ends = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    config = transformers.AutoConfig.for_model(
        architecture, dtype=dtype, **ends, **config_values(model.params, model.vocab_size, architecture)
    )
    write_text(folder / "config.json", config.to_json_string())
    generation = transformers.GenerationConfig(**ends, pad_token_id=end_of_text)
    write_text(folder / "generation_config.json", generation.to_json_string())
    reserved = [name for name in tokenizer.special_tokens if name != END_OF_TEXT]
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        **({"additional_special_tokens": reserved} if reserved else {}),
        "model_max_length": model.params.context_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    weights = named_weights(model, architecture)
    write_weights(folder / WHOLE, weights, getattr(torch, dtype), metadata={"format": "pt"})
    tokenizer.save(folder)


def compare_tokenizers(tokenizer: Tokenizer, vocab_size: int, folder: Path) -> None:
    """Raise ArtifactError where the tokenizer that transformers loads from `folder` differs from ours."""
    exported = import_transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    pairs: list[tuple[str, object, object]] = [
        ("the vocabulary size", max(exported.get_vocab().values()) + 1, vocab_size),
        (f"the id of {END_OF_TEXT}", exported.eos_token_id, tokenizer.end_of_text),
        (
            "the special tokens",
            dict(zip(exported.all_special_tokens, exported.all_special_ids, strict=True)),
            tokenizer.special_tokens,
        ),
    ]
    for text in SAMPLE_TEXTS:
        ids = exported.encode(text, add_special_tokens=False, verbose=False)  # verbose would remark on long texts
        pairs.append((f"the ids of {text!r}", ids, tokenizer.encode(text)))
        pairs.append((f"the text of the ids of {text!r}", exported.decode(ids), text))
    for what, theirs, ours in pairs:
        if theirs != ours:
            raise ArtifactError(
                f"{what}: {reprlib.repr(theirs)} in transformers, {reprlib.repr(ours)} in lmcore, from one "
                f"tokenizer.json: not exported; install the versions of requirements.lock, or train the tokenizer again"
            )


def require_architecture(params: ModelParams) -> Architecture:
    """Return the architecture of an exported model. Raises ParameterError, with the remedy, for none."""
    architecture = hugging_face_architecture(params)
    if architecture is None:
        raise ParameterError(f"{explain_misfit(params)}, and train again")
    return architecture


def compare_logits(model: GPT, dtype: str, folder: Path) -> float:
    """Return the largest absolute difference between lmcore's logits and those of `folder`'s model, to three digits.

    For `dtype` float32 it is rounding in another order of operations; otherwise what rounding the weights costs. Raises
    ArtifactError when the weights do not load one to one, or when the two differ with equally rounded weights. The
    model's weights are gone afterwards: two models at once would need twice the memory.
    """
    probes = draw_probes(model)
    exact = rounded = compute_ours(model, probes)
    if dtype != "float32":
        rounded = compute_ours(model.to(getattr(torch, dtype)).to(torch.float32), probes)
    model.to("meta")
    theirs = compute_theirs(load_with_transformers(folder), probes, folder)
    remaining = measure_difference(rounded, theirs)
    if not remaining.is_rounding:
        raise ArtifactError(
            f"the exported model's logits differ from the trained model's by {remaining.found:.3g}, more than "
            f"{remaining.allowed:.3g}: not exported; install the versions of requirements.lock"
        )
    return float(f"{measure_difference(exact, theirs).found:.3g}")
