"""TiDAR's decoders (Liu et al., arXiv:2511.08923): the model's own masks propose draft tokens, and it verifies them.

| forward     | new tokens                                                       | gives                             |
|-------------|------------------------------------------------------------------|-----------------------------------|
| look ahead  | last token, B masks                                              | 1 token, B - 1 draft tokens       |
| verify      | last token, B - 1 draft tokens                                   | 1 to B tokens                     |
| both in one | last token, B - 1 draft tokens, B masks for each number accepted | 1 to B tokens, B - 1 draft tokens |

Two forwards, look ahead and verify, take turns; one forward does both, with B (B + 1) new tokens. A block's first mask
stands for the same place as the text's own next token, which is known then, so that it drafts nothing.
"""

from typing import Any, ClassVar

from torch import Tensor

from lmcore.errors import ParameterError
from lmcore.generate.decoder import ActiveSequence, Decoder
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.model.tidar import Layout, lay_out


class TidarDecoder(Decoder):
    """A decoder whose draft tokens come from the model's masks; the text is a plain decoder's, token for token.

    Draft tokens are drawn as the tokens will be, from the masks' distribution with the draws of their places in the
    text: where both distributions are the same, so is the token.
    """

    drafts_by_itself = True
    one_forward: ClassVar[bool] = False

    def __init__(self, model: GPT, **options: Any) -> None:
        self.size = require_masks(model.params)
        self._ahead: Tensor | None = None
        super().__init__(model, draft_tokens=self.size - 1, **options)

    @classmethod
    def count_scratch(cls, params: ModelParams) -> int:
        """See `Decoder`: the masks."""
        size = require_masks(params)
        return size * (size if cls.one_forward else 1)

    def list_forwards(self) -> list[tuple[int, Layout | None]]:
        """See `Decoder`."""
        first, most = (lay_out(drafts, self.size, self.device) for drafts in (0, self.size - 1))
        second = (len(most.offsets), most) if self.one_forward else (self.size, None)
        return [(len(first.offsets), first), second]

    def _propose(self, sequence: ActiveSequence, count: int) -> list[int]:
        draft, sequence.draft = sequence.draft[:count], []
        return draft

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
        """Keep the draft tokens of the block that attended to the tokens that were accepted."""
        if self._ahead is None:
            return
        rows, blocks = list(range(len(chosen))), [len(tokens) - 1 for tokens in chosen]
        places = [sequence.tokens[-1:] * (self.size - 2) for sequence in self.active]
        for sequence, draft in zip(self.active, self._choose(self._ahead[rows, blocks, 1:], places), strict=True):
            sequence.draft = draft


class TidarOneForwardDecoder(TidarDecoder):
    """Verifies the draft tokens and proposes the next ones in one forward."""

    one_forward = True

    @classmethod
    def count_row_bytes(cls, model: GPT, capacity: int) -> int:
        """See `Decoder`: the logits of a step may need more than the cache."""
        new_tokens = cls.count_scratch(model.params) + require_masks(model.params)
        return max(super().count_row_bytes(model, capacity), 4 * new_tokens * model.vocab_size)


def require_masks(params: ModelParams) -> int:
    """Return the masks of a block. Raises ParameterError for a model without any."""
    size = params.diffusion.block_size
    if size is None:
        raise ParameterError(
            "sample.decoder: model.diffusion.block_size is empty, and TiDAR's decoders propose draft tokens by the "
            "model's masks: train one with model.diffusion.block_size=4, or set sample.decoder=plain"
        )
    return size
