"""TiDAR (Liu et al., arXiv:2511.08923): blocks of masks, each of which guesses the tokens after a place in the text.

A mask is an input row of its own that is no token. A block of them that follows `x_0 ... x_s` has the positions s+1,
s+2, ...; its masks see the text up to x_s and each other, never the text that they stand for, nor other blocks. The
text itself stays causal and sees no mask: with or without blocks it is the same GPT.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


class FusedMask(NamedTuple):
    """What a text with masks behind it sees, S = T + N: `text` (B, 1, T, T), None for causal; `masks` (B, 1, N, S)."""

    text: Tensor | None
    masks: Tensor | BlockMask
    text_length: int


class Layout(NamedTuple):
    """New tokens that are not one after the other: their `offsets` (n,) from the first, and who sees whom (n, n)."""

    offsets: Tensor
    sees: Tensor


def spread_masks(blocks: Tensor, size: int) -> Tensor:
    """The positions (B, n x size) of the masks of `blocks` (B, n), each the place of the last token that it sees."""
    return (blocks[:, :, None] + torch.arange(1, size + 1, device=blocks.device)).flatten(1)


class TidarMask:
    """Whether a mask, numbered from 0, sees a key, the text's T tokens and then the masks: FlexAttention's `mask_mod`.

    `blocks` (B, n) as in `spread_masks`; with `documents` (B, T) it sees the document of the last token before it.
    """

    def __init__(self, blocks: Tensor, size: int, time: int, documents: Tensor | None) -> None:
        self.size, self.time, self.count = size, time, blocks.shape[1] * size
        self.last = blocks.repeat_interleave(size, dim=1)  # (B, N)
        self.documents = None
        if documents is not None:
            self.documents = torch.nn.functional.pad(documents, (0, self.count), value=-1)  # (B, T + N)

    def __call__(self, batch: Tensor, head: Tensor | None, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG002
        """Any shapes that go together."""
        last = self.last[batch, query]
        before = key <= last
        if self.documents is not None:
            before = before & (self.documents[batch, key] == self.documents[batch, last])
        return before | ((key >= self.time) & ((key - self.time) // self.size == query // self.size))

    def densely(self) -> Tensor:
        """The mask (B, 1, N, T + N)."""
        device = self.last.device
        rows, masks = (torch.arange(count, device=device) for count in self.last.shape)
        keys = torch.arange(self.time + self.count, device=device)
        return self(rows[:, None, None], None, masks[:, None], keys)[:, None]

    def sparsely(self) -> BlockMask:
        """The same for FlexAttention, which leaves out what nobody sees."""
        batch, device = len(self.last), self.last.device

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return self(batch, head, query, key)

        return create_block_mask(sees, batch, None, self.count, self.time + self.count, device=str(device))


@lru_cache(maxsize=64)
def lay_out(drafts: int, size: int, device: torch.device) -> Layout:
    """The last token of a text, `drafts` guesses after it, and a block of masks for each number of them being right.

    | new token          | offset        | sees, beside the text before               |
    |--------------------|---------------|--------------------------------------------|
    | d_i, i = 0..drafts | i             | d_0 .. d_i                                 |
    | block r, slot s    | r + 1 + s     | d_0 .. d_r and its own block               |

    d_0 is the last token itself, so that no block is for none of them (TiDAR, figure 3: as many blocks as tokens).
    """
    tokens = drafts + 1
    index = torch.arange(tokens * (1 + size), device=device)
    is_mask = index >= tokens
    block = torch.where(is_mask, (index - tokens) // size, -1)
    last = torch.where(is_mask, block, index)  # the last token that it sees
    own = is_mask[:, None] & (block[:, None] == block)
    offsets = torch.where(is_mask, block + 1 + (index - tokens) % size, index)
    return Layout(offsets, (~is_mask & (index <= last[:, None])) | own)
