"""The weights that training begins with: drawn, or those of another model."""

from typing import Any

from lmcore.errors import ArtifactError, ParameterError
from lmcore.hub import find_model
from lmcore.model.gpt import GPT
from lmcore.model.save_load import load_model, read_lineage
from lmcore.model.weights import fingerprint_weights
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokenizer.load import load_tokenizer

# They may differ from the other model's: no weight depends on them, but for the masks' input row.
FREE_CHOICES = {"dropout", "document_mask", "diffusion"}
MASK = "mask_embedding.weight"


def load_initial_weights(model: GPT, init_from: str | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """Put the weights of the model `init_from`, a folder or on the hub, into `model`; return what names them.

    None leaves the drawn weights, and nothing to name. Raises ParameterError where the `model` section describes
    another model, ArtifactError for a missing or damaged folder or another tokenizer, naming both sides.
    """
    if init_from is None:
        return {}
    folder, origin = find_model(init_from, "train.init_from")
    other, others_tokenizer = load_model(folder), load_tokenizer(folder)
    if others_tokenizer.fingerprint != tokenizer.fingerprint:
        raise ArtifactError(
            f"train.init_from={init_from}: its tokenizer ({others_tokenizer.vocab_size} entries, fingerprint "
            f"{others_tokenizer.fingerprint[:12]}) is not the one that encoded the text ({tokenizer.vocab_size} "
            f"entries, {tokenizer.fingerprint[:12]}): encode the text with the model's tokenizer"
        )
    if other.vocab_size != tokenizer.vocab_size:
        raise ArtifactError(
            f"train.init_from={init_from}: it has {other.vocab_size} tokens and its tokenizer {tokenizer.vocab_size}: "
            f"only models without reserved tokens can be trained on"
        )
    ours, theirs = model.params.spell_out(), other.params.spell_out()
    # Angles go on for ever, and of learned positions the first ones will do.
    fits = model.params.position == "rope" or ours["context_length"] < theirs["context_length"]
    free = FREE_CHOICES | ({"context_length"} if fits else set())
    different = [f"model.{name}={theirs[name]}" for name in ours if name not in free and ours[name] != theirs[name]]
    if different:
        raise ParameterError(
            f"train.init_from={init_from} is another model than the model section says: set {', '.join(different)}"
        )
    weights = other.state_dict()
    if model.params.position == "learned":
        weights["position_embedding.weight"] = weights["position_embedding.weight"][: model.params.context_length]
    if model.params.diffusion.block_size is None:
        weights.pop(MASK, None)
    elif MASK not in weights:  # the mean of all tokens is no token, and as large as they are
        weights[MASK] = weights["token_embedding.weight"].mean(dim=0, keepdim=True)
    model.load_state_dict(weights)
    lineage = read_lineage(folder) if (folder / "lineage.json").exists() else {}  # not made by us
    before = {"init_from": lineage["init_from"]} if "init_from" in lineage else {}
    named = {"weights": fingerprint_weights(folder), "run_key": lineage.get("run_key"), **origin, **before}
    return {"init_from": named}
