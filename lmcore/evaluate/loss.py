"""Validation loss, perplexity and bits per byte over fixed windows."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import torch
import torch.nn.functional as F

from lmcore.errors import ArtifactError, DataError
from lmcore.model.gpt import GPT
from lmcore.model.tidar import spread_masks
from lmcore.tokens.batches import fixed_windows
from lmcore.tokens.shards import TokenShards

Observe = Callable[[np.ndarray, torch.Tensor], None]  # targets (B, T) of some windows, and the nats that each costs


@dataclass(frozen=True)
class Loss:
    """What a model pays for a text: `nats` in all, for `tokens` targets that stand for `bytes` bytes."""

    nats: float
    tokens: int
    bytes: int
    mask_losses: tuple[float, ...] = ()  # nats per token at each mask position of a block, if they were asked for

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """As many equally likely tokens would leave the model as unsure."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text, which compares models of different tokenizers with each other and with compressors."""
        return self.nats / math.log(2) / self.bytes


def measure_loss(
    model: GPT,
    shards: TokenShards,
    byte_lengths: np.ndarray,
    windows: int | None,
    batch_size: int,
    observe: Observe | None = None,
    *,
    with_masks: bool = False,
) -> Loss:
    """The loss of `model` on fixed windows of `shards`, each target once; `windows` None is the whole split.

    `byte_lengths` (V,) are the bytes of each token's text. End-of-text has none, but what it costs to predict counts.
    `observe` sees every window in their order.
    Raises ArtifactError for a model of another vocabulary, DataError for a split without text.
    """
    if model.vocab_size != shards.vocab_size:
        raise ArtifactError(
            f"the model's vocabulary has {model.vocab_size} tokens, that of the encoded text {shards.vocab_size}: "
            f"train on this text (dvc repro train)"
        )
    was_training = model.training
    model.eval()
    nats, tokens, text_bytes = 0.0, 0, 0
    try:
        chosen = fixed_windows(shards, model.params.context_length, windows)
        for targets, losses in score_windows(model, chosen, batch_size):
            nats += losses.sum().item()
            tokens += targets.size
            text_bytes += int(byte_lengths[targets].sum())
            if observe is not None:
                observe(targets, losses)
        mask_losses = measure_mask_losses(model, shards, windows, batch_size) if with_masks else ()
    finally:
        model.train(was_training)
    if not text_bytes:
        raise DataError("the validation split holds no text: raise prepare.validation_fraction or add documents")
    return Loss(nats, tokens, text_bytes, mask_losses)


@torch.inference_mode()
def measure_mask_losses(model: GPT, shards: TokenShards, windows: int | None, batch_size: int) -> tuple[float, ...]:
    """What the masks of a model, in evaluation mode, pay for each place in a block; () without masks.

    In every window by as many blocks as training has, spread evenly: it takes no more memory than a step.
    Raises DataError where no window holds a block.
    """
    params, device = model.params, model.token_embedding.weight.device
    size = params.diffusion.block_size
    if size is None:
        return ()
    sums, count = torch.zeros(size, dtype=torch.float64), 0
    for batch in _stack(fixed_windows(shards, params.context_length, windows), batch_size):
        rows = torch.from_numpy(batch).to(device)
        time = rows.shape[1] - 1
        if time <= size:
            continue
        places = torch.linspace(0, time - 1 - size, params.trained_mask_blocks, dtype=torch.int64, device=device)
        blocks = places.expand(len(rows), -1)
        hidden = model.hidden(rows[:, :-1], mask_blocks=blocks)[:, time:]  # (B, N, D)
        targets = rows.gather(1, spread_masks(blocks, size))
        for guesses, target in zip(hidden, targets, strict=True):
            losses = F.cross_entropy(model.logits(guesses).float(), target, reduction="none")
            sums += losses.cpu().double().view(-1, size).sum(dim=0)
        count += blocks.numel()
    if not count:
        raise DataError(f"no validation window holds model.diffusion.block_size={size} tokens: make it smaller")
    return tuple((sums / count).tolist())


@torch.inference_mode()
def score_windows(
    model: GPT, windows: Iterable[np.ndarray], batch_size: int
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """The targets of some windows at a time, (B, T), and what `model`, in evaluation mode, pays for each, in nats."""
    device = model.token_embedding.weight.device
    for batch in _stack(windows, batch_size):  # (B, T + 1)
        rows = torch.from_numpy(batch).to(device)
        losses = []
        # One window's logits (T, V) at a time: those of a whole batch would be the largest thing in memory.
        for hidden, target in zip(model.hidden(rows[:, :-1]), rows[:, 1:], strict=True):
            losses.append(F.cross_entropy(model.logits(hidden).float(), target, reduction="none"))
        # In float64 on the CPU: Apple's devices have none.
        yield batch[:, 1:], torch.stack(losses).cpu().double()


def _stack(windows: Iterable[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """Up to `batch_size` consecutive windows of one length at a time; the split's last window may be shorter."""
    for _, equal in groupby(windows, key=len):
        while rows := list(islice(equal, batch_size)):
            yield np.stack(rows)
