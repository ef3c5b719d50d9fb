"""A model as a folder of plain files: config.json, model.safetensors, lineage.json."""

from pathlib import Path
from typing import Any

import torch

from lmcore.errors import ArtifactError
from lmcore.files import read_json, write_json
from lmcore.model.gpt import GPT
from lmcore.model.hf_mapping import MODEL_CLASSES, load_hugging_face
from lmcore.model.params import DiffusionParams, ModelParams
from lmcore.model.weights import WHOLE, StoredWeights, copy_parts, write_weights
from lmcore.params import parse_section

FORMAT = 1
# Params that came after the first models of the format, and what those were without them.
LATER_PARAMS = {
    "document_mask": False,
    "d_head": None,
    "norm_epsilon": None,
    "rope_base": 10_000.0,
    "diffusion": DiffusionParams().model_dump(),
}
REMEDY = "run the train stage (dvc repro train), or fetch it (dvc pull)"


def save_model(folder: Path, model: GPT, lineage: dict[str, Any]) -> None:
    """Write the three files; the same weights and lineage give the same bytes.

    A tied head is the embedding and is written once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = model.state_dict()
    if model.params.tie_embeddings:
        del weights["head.weight"]
    write_weights(folder / WHOLE, weights)
    write_json(folder / "lineage.json", lineage)
    tokens = {"vocab_size": model.vocab_size, "end_of_text": model.end_of_text}
    write_json(folder / "config.json", {"format": FORMAT, **tokens, "model": model.params.model_dump()})


def load_model(folder: Path, device: torch.device | str = "cpu") -> GPT:
    """The model in evaluation mode; `folder` is ours or Hugging Face's, of an architecture that our blocks compute.

    Raises ArtifactError, or ParameterError for the shape, for a missing, damaged or foreign file, naming it.
    """
    place = folder / "config.json"
    match read_json(place, REMEDY):
        case {"model_type": str(architecture)} as values if architecture in MODEL_CLASSES:
            return load_hugging_face(folder, values).to(device)
        case {"format": 1, "model": dict(values), "vocab_size": vocab_size, **rest}:
            params = parse_section(ModelParams, f"{place}: model", {**LATER_PARAMS, **values})
            end_of_text: Any = rest.get("end_of_text")
            if type(vocab_size) is not int or vocab_size < 1:
                raise ArtifactError(f"{place}: vocab_size={vocab_size!r}: must be a whole number of at least 1")
            if end_of_text is not None and end_of_text not in range(vocab_size):
                raise ArtifactError(f"{place}: end_of_text={end_of_text!r}: must be a token, below {vocab_size}")
            if params.document_mask and end_of_text not in range(vocab_size):
                raise ArtifactError(f"{place}: end_of_text={end_of_text}: model.document_mask needs this token's id")
            stored = StoredWeights(folder, REMEDY)
            stored.require_layers(params.n_layers)
            shapes = {name: weight.shape for name, weight in GPT.outline(params, vocab_size).named_parameters()}
            other_shapes = (name for name in shapes if shapes[name] != stored.shapes[name])
            if wrong := sorted(shapes.keys() ^ stored.shapes) or sorted(other_shapes):
                named = ", ".join(wrong[:3])
                raise ArtifactError(f"{folder / WHOLE} does not fit {place} ({named}): {REMEDY}")
            weights = {name: copy_parts(shape, [stored.read(name)]) for name, shape in shapes.items()}
            return GPT.of_weights(params, vocab_size, weights, end_of_text=end_of_text).to(device)
    kinds = ", ".join(MODEL_CLASSES)
    raise ArtifactError(f"{place} is neither a model of format {FORMAT} nor Hugging Face's {kinds}: {REMEDY}")


def read_lineage(folder: Path) -> dict[str, Any]:
    """What made the model: parameters and fingerprints, as the train stage wrote them."""
    lineage: dict[str, Any] = read_json(folder / "lineage.json", REMEDY)
    return lineage
