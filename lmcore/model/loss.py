"""What training minimises: the cross-entropy of each next token, as a module of its own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcore.model.gpt import GPT

# Logits (fp32) above which the head and the loss are computed a piece at a time: no batch's logits are ever whole.
# GPT-2's vocabulary at 4 x 1024 tokens would be 823 MB, and as much again for their gradient.
WHOLE_LOGITS_BYTES = 64 << 20


class LanguageModelLoss(nn.Module):
    """The model and its loss as one module, which is what is compiled, replicated and sharded."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def compile_parts(self) -> None:
        """Compile the block, once for all layers, and the loss: half the time that the whole at once takes.

        In place, so that names of weights and hooks stay; `torch.compiler.set_stance("force_eager")` runs them as
        they were written.
        """
        for block in self.model.blocks:
            block.compile()
        self._score = torch.compile(self._score)  # type: ignore[method-assign]

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss in nats per token of `targets` (B, T) after `tokens` (B, T)."""
        return self._score(self.model.hidden(tokens), targets)

    def _score(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of `targets` (B, T) from the final hidden state (B, T, D)."""
        model = self.model
        if model.params.logit_softcap is None and targets.numel() * model.vocab_size * 4 > WHOLE_LOGITS_BYTES:
            hidden = (
                hidden.to(torch.get_autocast_dtype(hidden.device.type))
                if torch.is_autocast_enabled(hidden.device.type)
                else hidden
            )
            weight = model.head.weight.to(hidden.dtype)
            options = nn.LinearCrossEntropyOptions()
            return F.linear_cross_entropy(hidden.flatten(0, 1), weight, targets.flatten(), options=options)
        logits = model.logits(hidden)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
