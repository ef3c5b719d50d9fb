"""What training minimises: the cross-entropy of each next token and of what masks guess, as a module of its own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcore.model.gpt import GPT
from lmcore.model.tidar import spread_masks

# Logits (fp32) above which the head and the loss are computed a piece at a time: no batch's logits are ever whole.
# GPT-2's vocabulary at 4 x 1024 tokens would be 823 MB, and as much again for their gradient.
WHOLE_LOGITS_BYTES = 64 << 20


ScorePiece = Callable[[Tensor, Tensor, Tensor, float | None], tuple[Tensor, Tensor, Tensor]]


class Losses(NamedTuple):
    """What is minimised, in nats per token; with masks also its parts: the next token's, then each place's in a block.

    `parts` (1 + block_size,) or (0,) are for the log and have no gradient.
    """

    total: Tensor
    parts: Tensor


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

    def forward(self, tokens: Tensor, targets: Tensor, mask_blocks: Tensor | None = None) -> Losses:
        """The mean loss in nats per token of `targets` (B, T) after `tokens` (B, T).

        With `mask_blocks` (B, n; see `GPT.hidden`) TiDAR's, the weighted mean of the two losses.
        """
        time, diffusion = tokens.shape[1], self.model.params.diffusion
        hidden = self.model.hidden(tokens, mask_blocks=mask_blocks)
        if mask_blocks is None:
            loss, _ = self._score(hidden, targets)
            return Losses(loss, loss.new_empty(0))
        assert diffusion.block_size is not None
        guessed = targets.gather(1, spread_masks(mask_blocks, diffusion.block_size) - 1)
        loss, _ = self._score(hidden[:, :time], targets)
        masks_loss, each = self._score(hidden[:, time:], guessed, singly=True)
        mask_losses = each.view(-1, diffusion.block_size).mean(dim=0)
        total = (loss + diffusion.weight * masks_loss) / (1 + diffusion.weight)
        return Losses(total, torch.cat((loss[None], mask_losses)).detach())

    def _score(self, hidden: Tensor, targets: Tensor, *, singly: bool = False) -> tuple[Tensor, Tensor]:
        """The mean loss of `targets` (B, T) from the final hidden state (B, T, D); each one's if asked, (B x T,)."""
        if targets.numel() * self.model.vocab_size * 4 <= WHOLE_LOGITS_BYTES:
            return self._score_whole(hidden, targets, singly)
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        weight, cap = self.model.head.weight, self.model.params.logit_softcap
        rows = hidden.flatten(0, 1).to(dtype)
        score = CrossEntropyInPieces.apply
        loss, each = score(rows, weight.to(dtype), targets.flatten(), cap, self._score_piece)  # type: ignore[no-untyped-call]
        return loss, each

    def _score_whole(self, hidden: Tensor, targets: Tensor, singly: bool) -> tuple[Tensor, Tensor]:
        """See `_score`; each one's only if they are wanted `singly`."""
        scores, wanted = self.model.logits(hidden).float().flatten(0, 1), targets.flatten()
        loss = F.cross_entropy(scores, wanted)
        return loss, F.cross_entropy(scores.detach(), wanted, reduction="none") if singly else loss.new_empty(0)


class CrossEntropyInPieces(torch.autograd.Function):
    """Head and cross-entropy over pieces of the rows, the gradients computed on the way, while the logits are there.

    As Liger's fused linear cross-entropy (Hsu et al., arXiv:2410.10989). `F.linear_cross_entropy` does the same, but
    under bfloat16 it returns the loss itself in bfloat16, three digits of it.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor, cap: float | None, score: ScorePiece
    ) -> tuple[Tensor, Tensor]:
        """The mean loss of `targets` (N,) from `rows` (N, D) and the head's `weight` (V, D); each one's, constant."""
        loss, each = torch.zeros((), device=rows.device), torch.empty(len(rows), device=rows.device)
        rows_gradient = torch.empty_like(rows)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        size = max(1, WHOLE_LOGITS_BYTES // (4 * len(weight)))
        for start in range(0, len(rows), size):
            piece = slice(start, start + size)
            piece_loss, each[piece], gradient = score(rows[piece], weight, targets[piece], cap)
            loss += piece_loss
            rows_gradient[piece] = gradient @ weight
            weight_gradient += gradient.mT @ rows[piece]
        ctx.save_for_backward(rows_gradient / len(rows), (weight_gradient / len(rows)).to(weight.dtype))
        ctx.mark_non_differentiable(each)
        return loss / len(rows), each

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """The saved gradients times that of the loss."""
        rows_gradient, weight_gradient = ctx.saved_tensors
        return rows_gradient * gradients[0], weight_gradient * gradients[0], None, None, None


def score_piece(rows: Tensor, weight: Tensor, targets: Tensor, cap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """The summed loss of `targets` (n,), each one's, and the gradient of the sum by the scores, (n, V).

    The scores are `rows` (n, D) x `weight` (V, D).
    """
    scores = (rows @ weight.mT).float()
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    normaliser = scores.logsumexp(dim=1, keepdim=True)
    losses = (normaliser - scores.gather(1, targets[:, None])).squeeze(1)
    is_target = torch.arange(len(weight), device=rows.device) == targets[:, None]
    gradient = (scores - normaliser).exp() - is_target.float()
    if cap is not None:
        gradient = gradient * (1 - (scores / cap).square())
    return losses.sum(), losses, gradient.to(rows.dtype)
