"""`lmcore validate`: the logits and greedy continuations of transformers and lmcore for one prompt."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lmcore.errors import ArtifactError, ParameterError
from lmcore.export.hugging_face import require_architecture, write_hugging_face
from lmcore.export.transformers_reference import (
    Difference,
    Probe,
    compute_ours,
    compute_theirs,
    explain_failure,
    import_transformers,
    load_with_transformers,
    measure_difference,
)
from lmcore.files import read_json
from lmcore.generate.decoder import Decoder, Request
from lmcore.generate.sampling import Sampling
from lmcore.hub import find_model
from lmcore.model.gpt import GPT
from lmcore.model.save_load import load_model
from lmcore.tokenizer.load import load_tokenizer

NEW_TOKENS = 20


@dataclass(frozen=True)
class Validation:
    """The results for a prompt; `tokenizer` says in a phrase which one encoded it."""

    prompt_tokens: int
    tokenizer: str
    difference: Difference
    next_tokens: tuple[str, str]  # ours and theirs
    continuations: tuple[str, str]

    def describe(self) -> Iterator[str]:
        """Yield the findings, a line each."""
        ours, theirs = map(json.dumps, self.next_tokens)
        found, allowed = self.difference
        yield f"prompt: {self.prompt_tokens} tokens, {self.tokenizer}"
        yield f"logits: the largest difference is {found:.3g}, rounding explains {allowed:.3g}"
        yield f"next token: {ours} in both" if ours == theirs else f"next token: {ours} in lmcore, {theirs} there"
        yield f"lmcore continues:       {json.dumps(self.continuations[0], ensure_ascii=False)}"
        yield f"transformers continues: {json.dumps(self.continuations[1], ensure_ascii=False)}"
        yield (
            "the same"
            if self.difference.is_rounding
            else "not the same: lmcore and transformers compute different models"
        )


def validate_model(name: str, prompt: str) -> Validation:
    """Compare lmcore with transformers on the model `name`, a folder or on the hub, after `prompt`.

    A model of ours goes through its export, in a temporary folder. One after the other is in memory. Raises
    ParameterError for a name or a prompt that will not do, ArtifactError for a model that one of them does not read.
    """
    folder = find_model(name, None).folder
    model = load_model(folder).without_masks()
    with as_hugging_face(folder, model) as theirs:
        transformers = import_transformers()
        with explain_failure(theirs):
            tokenizer = transformers.AutoTokenizer.from_pretrained(theirs, local_files_only=True)
        tokens = tokenizer.encode(prompt, add_special_tokens=False) or [tokenizer.eos_token_id]
        require_prompt(model, tokens, folder)
        new_tokens = min(NEW_TOKENS, model.params.context_length - len(tokens))
        probe = Probe(torch.tensor([tokens]), torch.arange(len(tokens)))
        ours = compute_ours(model, [probe])
        capacity, request = len(tokens) + new_tokens, Request(tokens, new_tokens, Sampling(temperature=0.0))
        decoded = Decoder(model, batch=1, end_of_text=-1, capacity=capacity).decode([request])  # an end of text too
        ours_next = [new.token for new in decoded]
        model.to("meta")  # two models at once would need twice the memory
        network = load_with_transformers(theirs)
        expected = compute_theirs(network, [probe], theirs)
        theirs_next = continue_theirs(network, tokens, new_tokens)
        return Validation(
            prompt_tokens=len(tokens),
            tokenizer=compare_ids(folder, prompt, tokens),
            difference=measure_difference(ours, expected),
            next_tokens=(tokenizer.decode(ours_next[:1]), tokenizer.decode(theirs_next[:1])),
            continuations=(tokenizer.decode(ours_next), tokenizer.decode(theirs_next)),
        )


def require_prompt(model: GPT, tokens: Sequence[int | None], folder: Path) -> None:
    """Raise ParameterError for a prompt that both cannot continue, ArtifactError for another model's tokenizer."""
    if tokens == [None]:
        raise ParameterError("--prompt: it is empty, and the tokenizer has no end of text to begin with")
    known, context = [token for token in tokens if token is not None], model.params.context_length
    if len(known) >= context:
        raise ParameterError(f"--prompt: it has {len(known)} tokens, and the model's context only {context}")
    if max(known) >= model.vocab_size:
        raise ArtifactError(f"{folder}: its tokenizer has the id {max(known)}, and the model {model.vocab_size} tokens")
    if model.params.document_mask and model.end_of_text in known[1:]:
        raise ParameterError("--prompt: several documents, between which transformers knows no model.document_mask")


@contextmanager
def as_hugging_face(folder: Path, model: GPT) -> Iterator[Path]:
    """Yield the folder itself, or a temporary one with the export of lmcore's model."""
    if "model_type" in read_json(folder / "config.json", "see to it"):
        yield folder
        return
    with TemporaryDirectory() as place:
        write_hugging_face(model, require_architecture(model.params), "float32", load_tokenizer(folder), Path(place))
        yield Path(place)


@torch.inference_mode()
def continue_theirs(network: Any, prompt: Sequence[int], count: int) -> list[int]:
    """Return the likeliest `count` tokens after the prompt by transformers, an end of text too."""
    tokens = torch.tensor([prompt])
    network.generation_config = import_transformers().GenerationConfig()  # plainly greedy, whatever the folder asks for
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0}
    found: torch.Tensor = network.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    return found[0, len(prompt) :].tolist()


def compare_ids(folder: Path, prompt: str, tokens: Sequence[int]) -> str:
    """Return a phrase that says if lmcore's tokenizer encodes the prompt alike."""
    try:
        ours = load_tokenizer(folder)
    except ArtifactError:
        return "by transformers' tokenizer, which is none that lmcore reads"
    same = (ours.encode(prompt) or [ours.end_of_text]) == list(tokens)
    return "cut alike by both tokenizers" if same else "by transformers' tokenizer, which lmcore's does not agree with"
