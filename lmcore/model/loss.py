"""What training minimises: the cross-entropy of each next token, as a module of its own."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcore.model.gpt import GPT

# Logits (fp32) above which the head and the loss are computed a piece at a time: no batch's logits are ever whole.
# GPT-2's vocabulary at 4 x 1024 tokens would be 823 MB, and as much again for their gradient.
WHOLE_LOGITS_BYTES = 64 << 20


ScorePiece = Callable[[Tensor, Tensor, Tensor, float | None], tuple[Tensor, Tensor]]


class LanguageModelLoss(nn.Module):
    """The model and its loss as one module, which is what is compiled, replicated and sharded."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model
        self._score_piece: ScorePiece = score_piece

    def compile_parts(self) -> None:
        """Compile the block, once for all layers, and the loss: half the time that the whole at once takes.

        In place, so that names of weights and hooks stay; `torch.compiler.set_stance("force_eager")` runs them as
        they were written.
        """
        for block in self.model.blocks:
            block.compile()
        self._score_whole = torch.compile(self._score_whole)  # type: ignore[method-assign]
        self._score_piece = torch.compile(score_piece)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss in nats per token of `targets` (B, T) after `tokens` (B, T)."""
        hidden = self.model.hidden(tokens)
        if targets.numel() * self.model.vocab_size * 4 <= WHOLE_LOGITS_BYTES:
            return self._score_whole(hidden, targets)
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        weight, cap = self.model.head.weight, self.model.params.logit_softcap
        rows = hidden.flatten(0, 1).to(dtype)
        score = CrossEntropyInPieces.apply
        loss: Tensor = score(rows, weight.to(dtype), targets.flatten(), cap, self._score_piece)  # type: ignore[no-untyped-call]
        return loss

    def _score_whole(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of `targets` (B, T) from the final hidden state (B, T, D)."""
        return F.cross_entropy(self.model.logits(hidden).float().flatten(0, 1), targets.flatten())


class CrossEntropyInPieces(torch.autograd.Function):
    """Head and cross-entropy over pieces of the rows, the gradients computed on the way, while the logits are there.

    As Liger's fused linear cross-entropy (Hsu et al., arXiv:2410.10989). `F.linear_cross_entropy` does the same, but
    under bfloat16 it returns the loss itself in bfloat16, three digits of it.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor, cap: float | None, score: ScorePiece
    ) -> Tensor:
        """The mean loss of `targets` (N,) from `rows` (N, D) and the head's `weight` (V, D)."""
        loss = torch.zeros((), device=rows.device)
        rows_gradient = torch.empty_like(rows)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        size = max(1, WHOLE_LOGITS_BYTES // (4 * len(weight)))
        for start in range(0, len(rows), size):
            piece = slice(start, start + size)
            piece_loss, gradient = score(rows[piece], weight, targets[piece], cap)
            loss += piece_loss
            rows_gradient[piece] = gradient @ weight
            weight_gradient += gradient.mT @ rows[piece]
        ctx.save_for_backward(rows_gradient / len(rows), (weight_gradient / len(rows)).to(weight.dtype))
        return loss / len(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """The saved gradients times that of the loss."""
        rows_gradient, weight_gradient = ctx.saved_tensors
        return rows_gradient * gradients[0], weight_gradient * gradients[0], None, None, None


def score_piece(rows: Tensor, weight: Tensor, targets: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
    """The summed loss of `targets` (n,), and its gradient by the scores `rows` (n, D) x `weight` (V, D), (n, V)."""
    scores = (rows @ weight.mT).float()
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    normaliser = scores.logsumexp(dim=1, keepdim=True)
    loss = (normaliser - scores.gather(1, targets[:, None])).sum()
    is_target = torch.arange(len(weight), device=rows.device) == targets[:, None]
    gradient = (scores - normaliser).exp() - is_target.float()
    if cap is not None:
        gradient = gradient * (1 - (scores / cap).square())
    return loss, gradient.to(rows.dtype)
