"""What transformers computes from a Hugging Face folder: the other side that exports and imports are compared with."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmcore.errors import ArtifactError, LmcoreError
from lmcore.model.gpt import GPT

# Of the largest logit, or of 1. The same operations in another order differ by about 1e-6 of it; queries taken for keys
# in a random model, whose logits are below 1, by 1e-3.
ROUNDING = 1e-4
COMPARED_TOKENS = 256  # of a longer context: 1024 took most of the time that GPT-2's export takes
COMPARED_LOGITS = 64  # positions of it: all logits would need much of GPT-2's memory


class Probe(NamedTuple):
    """A batch of tokens (B, T), and the positions whose logits are compared."""

    tokens: Tensor
    positions: Tensor


class Difference(NamedTuple):
    """The largest absolute difference of logits, and the largest that rounding explains."""

    found: float
    allowed: float

    @property
    def is_rounding(self) -> bool:
        """Whether nothing else differs; false of NaN too."""
        return self.found <= self.allowed


def import_transformers() -> ModuleType:
    """The optional library, told to ask nothing of the network. It takes seconds, so nothing else imports it."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers as library
    except ImportError:
        raise LmcoreError("Hugging Face folders need the transformers library: pip install -e '.[hf]'") from None
    transformers: ModuleType = library
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


def load_with_transformers(folder: Path) -> Any:
    """The network in `folder` as transformers makes it, in fp32, each weight found and none left over.

    Raises ArtifactError, with transformers' own words, where that is not so.
    """
    transformers = import_transformers()
    with explain_failure(folder):
        network, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    if faults := {fault: sorted(map(str, names)) for fault, names in report.items() if names}:
        raise ArtifactError(f"{folder}: transformers {transformers.__version__} does not load all of it: {faults}")
    return network


@contextmanager
def explain_failure(folder: Path) -> Iterator[None]:
    """Take an exception of transformers for an ArtifactError: half a dozen libraries raise them, about the folder."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        raise ArtifactError(f"{folder}: transformers does not load or compute it ({reason})") from None


def draw_probes(model: GPT) -> list[Probe]:
    """Fixed random tokens: a few short texts, and one as long as the context."""
    generator = torch.Generator().manual_seed(0)
    context = min(model.params.context_length, COMPARED_TOKENS)
    short = min(16, context)
    probes = []
    for shape, positions in [
        ((4, short), torch.arange(short)),
        ((1, context), torch.linspace(0, context - 1, min(context, COMPARED_LOGITS)).long()),
    ]:
        tokens = torch.randint(model.vocab_size, shape, generator=generator)
        if model.params.document_mask:  # transformers takes several documents for one: both compute the same within one
            tokens = (tokens + (tokens == model.end_of_text)) % model.vocab_size
        probes.append(Probe(tokens, positions))
    return probes


@torch.inference_mode()
def compute_ours(model: GPT, probes: Sequence[Probe]) -> list[Tensor]:
    """Our logits (B, positions, V) of each probe."""
    return [model.logits(model.hidden(tokens)[:, positions]) for tokens, positions in probes]


@torch.inference_mode()
def compute_theirs(network: Any, probes: Sequence[Probe], folder: Path) -> list[Tensor]:
    """The same of the `network` that transformers made from `folder`."""
    with explain_failure(folder):
        return [network(tokens, use_cache=False, logits_to_keep=kept).logits for tokens, kept in probes]


def measure_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Difference:
    """Between two lists of logits."""
    found = torch.stack([(one - other).abs().max() for one, other in zip(ours, theirs, strict=True)]).max().item()
    largest = torch.stack([logits.abs().max() for logits in theirs]).max().item()
    return Difference(found, ROUNDING * max(1.0, largest))
