"""Causal attention by the fastest way that the device and the shapes allow; all ways compute the same."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from lmcore.model.tidar import FusedMask

# Compiled on a CPU, products and softmax over blocks of queries beat torch's fused kernel, whose backward alone took a
# quarter of a step. Milliseconds of a step in bf16 on two AVX512-BF16 cores, the fused kernel against products: 717 and
# 617 for 6 layers x 384, 16 x 256 tokens; 152 and 88 for 4 x 192, 16 x 128; 55 and 29 for 3 x 192, 16 x 64. Blocks
# leave out some of what the mask would throw away (617 against 663). Smaller ones leave out more and are as fast, but
# each has kernels of its own, 4 s of compilation more; longer contexts would make too many of them.
# With 64 masks of TiDAR behind each text a step of 6 x 384, 16 x 128 tokens, took 415 and 380.
BLOCK_TOKENS = 128
LONGEST_BLOCKED = 512


Mask = Tensor | BlockMask | FusedMask


def attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Mask | None = None, dropout: float = 0.0) -> Tensor:
    """What each of `query` (B, H, T, W) gathers from `key` and `value` (B, K, S, W), K dividing H: (B, H, T, W).

    A position sees what is true in `mask`, (T, S) or (B, 1, T, S); without one itself and those before it.
    """
    # Whether it becomes part of a compiled block whose kernels are written for the processor it runs on.
    is_fused = query.device.type == "cpu" and dropout == 0.0 and torch.compiler.is_compiling()
    if isinstance(mask, FusedMask):
        # Apart, so that the text, most of it, is plain causal attention.
        text = [part[:, :, : mask.text_length] for part in (query, key, value)]
        seen, masks = attend(*text, mask=mask.text, dropout=dropout), query[:, :, mask.text_length :]
        if is_fused and cut_into_blocks(mask.text_length) and isinstance(mask.masks, Tensor):
            return torch.cat((seen, _attend_by_products(masks, key, value, mask.masks)), dim=2)
        return torch.cat((seen, attend(masks, key, value, mask=mask.masks, dropout=dropout)), dim=2)
    if isinstance(mask, BlockMask):
        assert dropout == 0.0, "FlexAttention has no dropout"
        # A part of a longer tensor as the query gave wrong numbers within a compiled block (torch 2.13 on a CPU).
        attend_sparsely: Any = flex_attention if torch.compiler.is_compiling() else compile_flex_attention()
        mixed: Tensor = attend_sparsely(
            query.contiguous(), key, value, block_mask=mask, enable_gqa=key.shape[1] != query.shape[1]
        )
        return mixed
    time = query.shape[2]
    if is_fused and key.shape[2] == time and cut_into_blocks(time):
        return _attend_in_blocks(query, key, value, mask)
    if is_fused and time == 1:
        return _attend_by_one(query, key, value, mask)
    if mask is not None and time > 1 and query.device.type != "cpu":
        # On CUDA grouped heads are for two kernels (torch's documentation): one takes no mask, the other keeps T x T
        # matrices of each head.
        key, value = _repeat_heads(query, key, value)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and time > 1,
        enable_gqa=key.shape[1] != query.shape[1],
    )


@cache
def compile_flex_attention() -> Callable[..., Any]:
    """FlexAttention as a kernel: as it is written it would make a matrix of all pairs."""
    return torch.compile(flex_attention, dynamic=False)


def cut_into_blocks(time: int) -> list[tuple[int, int]]:
    """The blocks of so many positions, [start, end) each, the last may be shorter; none where they do not pay."""
    if not 1 < time <= LONGEST_BLOCKED:
        return []
    return [(start, min(start + BLOCK_TOKENS, time)) for start in range(0, time, BLOCK_TOKENS)]


def mask_documents(documents: Tensor) -> Tensor:
    """What each token may see, (B, 1, T, T), of those before it: its own document, by their numbers (B, T)."""
    return (documents[:, :, None] == documents[:, None, :]).tril()[:, None]


def number_documents(tokens: Tensor, end_of_text: int) -> Tensor:
    """The number of each token's document, (B, T).

    `end_of_text` opens a document and belongs to it; what comes before the first one is a document too.
    """
    return (tokens == end_of_text).cumsum(dim=1, dtype=torch.int32)


def _repeat_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with as many heads as `query`."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)


def _attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Causal attention, one block of queries after the other, each over the keys up to its own end."""
    blocks = []
    for start, end in cut_into_blocks(query.shape[2]):
        if mask is None:
            seen = torch.ones(end - start, end, dtype=torch.bool, device=query.device).tril(start)
        else:
            seen = mask[..., start:end, :end]
        blocks.append(_attend_by_products(query[:, :, start:end], key[:, :, :end], value[:, :, :end], seen))
    return torch.cat(blocks, dim=2)


def _attend_by_products(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """What each query gathers from the keys that it has `seen` (..., T, S), as it is defined."""
    key, value = _repeat_heads(query, key, value)
    scores = (query @ key.transpose(-2, -1)).float() * query.shape[3] ** -0.5
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    mixed: Tensor = weights.to(value.dtype) @ value
    return mixed


def _attend_by_one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """What one position of each text gathers, as sums of products, which are compiled together.

    A token of a model of 6 layers x 384 attends to 256 in 0.3 ms so, in 0.6 ms by the kernel for long texts.
    """
    batch, heads, _, width = query.shape
    grouped = query.view(batch, key.shape[1], -1, 1, width) * width**-0.5  # (B, K, H / K, 1, W)
    scores = (grouped * key[:, :, None]).sum(-1).float()  # (B, K, H / K, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1).to(value.dtype)
    mixed: Tensor = (weights[..., None] * value[:, :, None]).sum(-2)
    return mixed.view(batch, heads, 1, width)
