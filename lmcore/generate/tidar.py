"""TiDAR's decoders (Liu et al., arXiv:2511.08923): the model's own masks guess ahead, and it checks what they guess.

| forward         | new tokens                                                         | gives                       |
|-----------------|--------------------------------------------------------------------|-----------------------------|
| look ahead      | last token, B masks                                                | 1 token, B - 1 guesses      |
| check           | last token, B - 1 guesses                                          | 1 to B tokens               |
| both in one     | last token, B - 1 guesses, B masks for each number of right ones   | 1 to B tokens, B - 1 guesses |

Two forwards, look ahead and check, take turns; one forward does both, with B (B + 1) new tokens. A block's first mask
stands for the same place as the text's own next token, which is known then, so that it guesses nothing.
"""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from lmcore.generate.decoder import Decoder
from lmcore.model.gpt import GPT
from lmcore.model.tidar import Layout, lay_out


class Guesses:
    """A text's guesses until the next forward checks them (a `DraftSource`)."""

    def __init__(self) -> None:
        self.waiting: list[int] = []

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:  # noqa: ARG002
        """See `DraftSource`."""
        guesses, self.waiting = self.waiting[:count], []
        return guesses


def count_masks(size: int, *, one_forward: bool) -> int:
    """The most that a forward has behind a text."""
    return size * (size if one_forward else 1)


class DiffusionDecoder(Decoder):
    """A decoder whose drafts are the guesses of the model's masks; the text is a plain decoder's, token for token.

    Guesses are drawn as the tokens will be, from the masks' distribution with the draws of their places in the text:
    where both distributions are the same, so is the token.
    """

    def __init__(self, model: GPT, *, one_forward: bool, **options: Any) -> None:
        assert model.params.diffusion.block_size is not None
        self.size, self.one_forward = model.params.diffusion.block_size, one_forward
        self._ahead: Tensor | None = None
        super().__init__(model, open_drafts=Guesses, draft_tokens=self.size - 1, **options)

    @property
    def scratch(self) -> int:
        """See `Decoder`: the masks' places."""
        return count_masks(self.size, one_forward=self.one_forward)

    def list_forwards(self) -> list[tuple[int, Layout | None]]:
        """See `Decoder`."""
        first, most = (lay_out(drafts, self.size, self.device) for drafts in (0, self.size - 1))
        second = (len(most.offsets), most) if self.one_forward else (self.size, None)
        return [(len(first.offsets), first), second]

    def _compute_logits(self, unread: list[list[int]], starts: list[int], layout: Layout | None = None) -> Tensor:
        time = len(unread[0])
        if not self.one_forward and time > 1:
            self._ahead = None
            return super()._compute_logits(unread, starts)
        layout = lay_out(time - 1, self.size, self.device)
        masks = [self.model.vocab_size] * (time * self.size)
        logits = super()._compute_logits([tokens + masks for tokens in unread], starts, layout)
        self._ahead = logits[:, time:].unflatten(1, (time, self.size))  # (B, T, block_size, V)
        return logits[:, :time]

    def _look_ahead(self, chosen: list[list[int]]) -> None:
        """Keep the guesses of the block that saw what has become the text."""
        if self._ahead is None:
            return
        rows, blocks = list(range(len(chosen))), [len(tokens) - 1 for tokens in chosen]
        guesses = self._choose(self._ahead[rows, blocks, 1:], [row.tokens[-1:] * (self.size - 2) for row in self.rows])
        for row, tokens in zip(self.rows, guesses, strict=True):
            cast(Guesses, row.drafts).waiting = tokens
