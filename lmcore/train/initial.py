"""The weights that training begins with: drawn, or those of another model."""

from pathlib import Path
from typing import Any

from lmcore.errors import ArtifactError, ParameterError
from lmcore.files import sha256_file
from lmcore.model.folder import load_model, read_lineage
from lmcore.model.gpt import GPT
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokenizer.load import load_tokenizer

FREE_CHOICES = {"dropout"}  # they may differ from the other model's: no weight depends on them


def load_initial_weights(model: GPT, init_from: str | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """Put the weights of the model folder `init_from` into `model`, in place; return what names them.

    None leaves the drawn weights, and nothing to name. Raises ParameterError where the `model` section describes
    another model, ArtifactError for a missing or damaged folder or another tokenizer, naming both sides.
    """
    if init_from is None:
        return {}
    folder = Path(init_from)
    other, others_tokenizer = load_model(folder), load_tokenizer(folder)
    if others_tokenizer.fingerprint != tokenizer.fingerprint:
        raise ArtifactError(
            f"train.init_from={init_from}: its tokenizer ({others_tokenizer.vocab_size} entries, fingerprint "
            f"{others_tokenizer.fingerprint[:12]}) is not the one that encoded the text ({tokenizer.vocab_size} "
            f"entries, {tokenizer.fingerprint[:12]}): encode the text with the model's tokenizer"
        )
    ours, theirs = model.params.model_dump(), other.params.model_dump()
    free = FREE_CHOICES | ({"context_length"} if model.params.position == "rope" else set())
    different = [f"model.{name}={theirs[name]}" for name in ours if name not in free and ours[name] != theirs[name]]
    if different:
        raise ParameterError(
            f"train.init_from={init_from} is another model than the model section says: set {', '.join(different)}"
        )
    model.load_state_dict(other.state_dict())
    weights = sha256_file(folder / "model.safetensors")
    return {"init_from": {"weights": weights, "run_key": read_lineage(folder).get("run_key")}}
