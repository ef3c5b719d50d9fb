"""Tiny parameters and texts for the tests."""

import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmcore.encode.encode import encode_splits
from lmcore.encode.params import EncodeParams
from lmcore.files import fingerprint
from lmcore.model.gpt import GPT
from lmcore.model.params import DiffusionParams, ModelParams
from lmcore.params import parse_section
from lmcore.tokenizer.base import Tokenizer
from lmcore.train.params import TrainParams
from lmcore.train_tokenizer.params import TokenizerParams

WORDS = "the cat sat on a mat and saw that dog run far away from its own small house".split()

TINY_MODEL = ModelParams(
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_model=32,
    d_head=None,
    d_ff=48,
    context_length=16,
    dropout=0.0,
    norm="rmsnorm",
    norm_epsilon=None,
    position="rope",
    rope_base=10_000.0,
    mlp="swiglu",
    qk_norm=True,
    bias=False,
    tie_embeddings=True,
    logit_softcap=None,
    document_mask=False,
    diffusion=DiffusionParams(),
)
GPT2_MODEL = TINY_MODEL.model_copy(
    update={
        "n_kv_heads": None,
        "d_ff": None,
        "norm": "layernorm",
        "position": "learned",
        "mlp": "gelu",
        "qk_norm": False,
        "bias": True,
    }
)
TINY_TRAIN = TrainParams(
    seed=7,
    init_from=None,
    lora_rank=None,
    lora_alpha=16.0,
    batch_size=4,
    max_steps=12,
    max_tokens=None,
    epochs=None,
    mixture=None,
    packing="stream",
    window_jitter=True,
    optimizer="adamw",
    learning_rate=0.01,
    schedule="cosine",
    warmup_steps=2,
    decay_fraction=0.5,
    min_learning_rate_ratio=0.1,
    weight_decay=0.1,
    beta1=0.9,
    beta2=0.95,
    muon_momentum=0.95,
    grad_clip=1.0,
    ema_decay=None,
    max_skipped_steps=0,
    deterministic=False,
    log_every=1,
    eval_every=4,
    eval_windows=8,
    checkpoint_every_steps=3,
    checkpoint_every_minutes=None,
    keep_checkpoints=2,
)


def tokenizer_params(kind: str, **changes: Any) -> TokenizerParams:
    """Of a kind, all else at its default but the vocabulary, which is tiny."""
    values = {"vocab_size": 300, "digits": 2, "special_tokens": None, "name": None, "max_bytes": None}
    return parse_section(TokenizerParams, "train_tokenizer", {"kind": kind, **values, **changes})


@dataclass(frozen=True)
class Texts:
    """A part of a split that is in memory."""

    batches: list[list[str]]
    source: str = "text"
    size: int = 0

    def fingerprint(self) -> str:
        """SHA-256 of the texts."""
        return fingerprint(self.batches)

    def read(self) -> Iterator[list[str]]:
        """The batches."""
        return iter(self.batches)


def encode_texts(
    shard_tokens: int,
    splits: Mapping[str, Iterable[list[str]]],
    tokenizer: Tokenizer,
    folder: Path,
) -> dict[str, Any]:
    """`encode_splits` of texts in memory, each split one part."""
    parts = {split: [Texts(list(batches))] for split, batches in splits.items()}
    with tempfile.TemporaryDirectory() as scratch:
        params = EncodeParams(shard_tokens=shard_tokens, tokenized=None)
        return encode_splits(params, parts, tokenizer, folder, scratch=Path(scratch))


def make_texts(count: int, seed: int) -> list[str]:
    """Documents of some hundred characters, with a little structure to learn."""
    source = random.Random(seed)
    return [" ".join(source.choices(WORDS, k=source.randint(20, 60))) + ".\n" for _ in range(count)]


@torch.no_grad()
def disturb(model: GPT, deviation: float = 0.1) -> GPT:
    """The model in evaluation mode, its weights away from the initial values, where many mistakes do not show."""
    for weight in model.parameters():
        weight += deviation * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    return model.eval()


@torch.no_grad()
def sharpen(model: GPT) -> GPT:
    """The model in evaluation mode, with matrices so large that its text is not one token over and over."""
    for weight in model.parameters():
        weight.mul_(10 if weight.dim() > 1 else 1)
    return model.eval()
