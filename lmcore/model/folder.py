"""A model as a folder of plain files: config.json, model.safetensors, lineage.json."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lmcore.errors import ArtifactError
from lmcore.files import fingerprint, read_json, sha256_file, write_file, write_json
from lmcore.model.gpt import GPT, ModelParams
from lmcore.model.hugging_face import our_weights, read_config
from lmcore.params import parse_section

FORMAT = 1
REMEDY = "run the train stage (dvc repro train), or fetch it (dvc pull)"
HUGGING_FACE_REMEDY = "save it there with transformers' save_pretrained, or download the folder again"


def save_model(folder: Path, model: GPT, lineage: dict[str, Any]) -> None:
    """Write the three files; the same weights and lineage give the same bytes.

    A tied head is the embedding and is written once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
    if model.params.tie_embeddings:
        del weights["head.weight"]
    with write_file(folder / "model.safetensors") as file:
        file.write(save(weights))
    write_json(folder / "lineage.json", lineage)
    config = {"format": FORMAT, "vocab_size": model.vocab_size, "model": model.params.model_dump()}
    write_json(folder / "config.json", config)


def load_model(folder: Path, device: torch.device | str = "cpu") -> GPT:
    """The model in evaluation mode; `folder` is ours, or of Hugging Face and of an architecture that our blocks cover.

    Raises ArtifactError for a missing, damaged or foreign file, naming it.
    """
    place = folder / "config.json"
    config = read_json(place, REMEDY)
    if isinstance(config, dict) and "model_type" in config:
        architecture, params, vocab_size = read_config(config, str(place))
        model = GPT(params, vocab_size, seed=None)
        weights = our_weights(model, architecture, read_weights(folder, HUGGING_FACE_REMEDY), str(folder))
    elif isinstance(config, dict) and config.get("format") == FORMAT and {"model", "vocab_size"} <= config.keys():
        model = GPT(parse_section(ModelParams, f"{place}: model", config["model"]), config["vocab_size"], seed=None)
        weights = read_weights(folder, REMEDY)
        if model.params.tie_embeddings and "token_embedding.weight" in weights:
            weights["head.weight"] = weights["token_embedding.weight"]
    else:
        raise ArtifactError(f"{place} is neither a model of format {FORMAT} nor one of Hugging Face: {REMEDY}")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ArtifactError(f"the weights in {folder} do not fit {place} ({' '.join(str(error).split())})") from None
    return model.to(device).eval()


def read_weights(folder: Path, remedy: str) -> dict[str, Tensor]:
    """Every tensor of the folder's weight files. Raises ArtifactError for one that is missing or damaged."""
    weights: dict[str, Tensor] = {}
    for path in list_weights(folder):
        try:
            weights |= load_file(path)
        except FileNotFoundError:
            raise ArtifactError(f"{path} does not exist: {remedy}") from None
        except SafetensorError as error:
            raise ArtifactError(f"{path} is damaged ({error}): {remedy}") from None
    return weights


def list_weights(folder: Path) -> list[Path]:
    """model.safetensors, or the pieces that Hugging Face's model.safetensors.index.json names."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    match read_json(index, HUGGING_FACE_REMEDY):
        case {"weight_map": dict(pieces)}:
            return [folder / name for name in sorted(set(pieces.values()))]
    raise ArtifactError(f"{index} is damaged (no weight_map): {HUGGING_FACE_REMEDY}")


def fingerprint_weights(folder: Path) -> str:
    """SHA-256 of the weights: of the file, or of the list of its pieces' own."""
    pieces = {path.name: sha256_file(path) for path in list_weights(folder)}
    return fingerprint(pieces) if len(pieces) > 1 else next(iter(pieces.values()))


def read_lineage(folder: Path) -> dict[str, Any]:
    """What made the model: parameters and fingerprints, as the train stage wrote them."""
    lineage: dict[str, Any] = read_json(folder / "lineage.json", REMEDY)
    return lineage
