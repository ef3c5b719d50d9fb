"""The GPT: GPT-2's blocks and the modern ones, chosen by parameters.

Shapes: B batch, T time (tokens), D d_model, H query heads, K key-value heads, W head width (D / H unless set), V
vocabulary.
The code is for one device; data parallelism and sharding are applied from outside.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcore.model.attention import Mask, attend, mask_documents, number_documents
from lmcore.model.kv_cache import CacheView, KeyValueCache
from lmcore.model.linear import Linear
from lmcore.model.params import DiffusionParams, ModelParams
from lmcore.model.tidar import FusedMask, TidarMask, spread_masks


def build_norm(params: ModelParams, width: int) -> nn.Module:
    """LayerNorm or RMSNorm (arXiv:1910.07467) over the last dimension."""
    if params.norm == "rmsnorm":
        return nn.RMSNorm(width, eps=params.epsilon("rmsnorm"))
    return nn.LayerNorm(width, eps=params.epsilon("layernorm"), bias=params.bias)


def rotary_tables(positions: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (..., T, W) at `positions` (..., T): rotary, arXiv:2104.09864, the halves as Llama has them."""
    frequencies = base ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
    angles = positions.to(torch.float32)[..., None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each pair (i, i + W/2) of `heads` (B, H, T, W) by its position's angle; in fp32."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat((-second, first), dim=-1) * sines


def measure_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean in nats of `targets` (B, T) by `logits` (B, T, V)."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


class Attention(nn.Module):
    """Causal self-attention with grouped key-value heads, optional QK-norm and rotary positions."""

    def __init__(self, params: ModelParams, layer: int) -> None:
        super().__init__()
        self.layer, self.dropout = layer, params.dropout
        self.n_heads, self.kv_heads, self.head_width = params.n_heads, params.kv_heads, params.head_width
        self.qkv = Linear(params.d_model, (params.n_heads + 2 * params.kv_heads) * params.head_width, params.bias)
        self.projection = Linear(params.n_heads * params.head_width, params.d_model, params.bias)
        # Queries and keys of unit size keep the attention logits bounded (arXiv:2010.04245; gains as in Qwen3).
        self.qk_norm = params.qk_norm
        if params.qk_norm:
            self.query_norm = nn.RMSNorm(params.head_width, eps=params.epsilon("rmsnorm"))
            self.key_norm = nn.RMSNorm(params.head_width, eps=params.epsilon("rmsnorm"))

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Mask | None, cache: CacheView | None
    ) -> Tensor:
        """What each position of `x` (B, T, D) gathers from those before it that `mask` lets it see, (B, T, D)."""
        batch, time, _ = x.shape
        heads = self.qkv(x).view(batch, time, self.n_heads + 2 * self.kv_heads, self.head_width).transpose(1, 2)
        query, key, value = heads.split([self.n_heads, self.kv_heads, self.kv_heads], dim=1)  # (B, H or K, T, W)
        # In fp32, as rotation is: a mean of squares and an angle lose much in bf16.
        if self.qk_norm:
            query, key = self.query_norm(query.float()), self.key_norm(key.float())
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        query, key = query.to(value.dtype), key.to(value.dtype)
        if cache is not None:
            key, value = cache.append(self.layer, key, value)  # (B, K, window, W)
        mixed = attend(query, key, value, mask=mask, dropout=self.dropout if self.training else 0.0)
        projected: Tensor = self.projection(mixed.transpose(1, 2).flatten(2))
        return projected


class Mlp(nn.Module):
    """GPT-2's two-layer GELU (tanh form), SwiGLU (arXiv:2002.05202), or Primer's squared ReLU (arXiv:2109.08668)."""

    def __init__(self, params: ModelParams) -> None:
        super().__init__()
        self.kind = params.mlp
        self.up = Linear(params.d_model, params.ff_width * (2 if self.kind == "swiglu" else 1), params.bias)
        self.projection = Linear(params.ff_width, params.d_model, params.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Each position of `x` (B, T, D) on its own, (B, T, D)."""
        hidden: Tensor = self.up(x)
        match self.kind:
            case "swiglu":
                gate, hidden = hidden.chunk(2, dim=-1)
                hidden = F.silu(gate) * hidden
            case "relu2":
                hidden = F.relu(hidden).square()
            case _:
                hidden = F.gelu(hidden, approximate="tanh")
        projected: Tensor = self.projection(hidden)
        return projected


class Block(nn.Module):
    """Norm, attention, add; norm, MLP, add (the pre-norm residual block of GPT-2)."""

    def __init__(self, params: ModelParams, layer: int) -> None:
        super().__init__()
        self.attention_norm = build_norm(params, params.d_model)
        self.attention = Attention(params, layer)
        self.mlp_norm = build_norm(params, params.d_model)
        self.mlp = Mlp(params)
        self.dropout = nn.Dropout(params.dropout)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Mask | None, cache: CacheView | None
    ) -> Tensor:
        """The residual stream `x` (B, T, D) with both parts added."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, mask, cache))
        output: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return output


class TidarOutput(NamedTuple):
    """Logits of a text and of the masks behind it, (B, T, V) and (B, T', V); with targets the losses.

    Row t of both stands for the token at position t + 1.
    """

    logits: Tensor
    diffusion_logits: Tensor
    loss: Tensor | None = None
    ar_loss: Tensor | None = None
    diffusion_loss: Tensor | None = None


class GPT(nn.Module):
    """A causal language model: embeddings, blocks, final norm, head.

    With `model.document_mask` it must know the token that opens each document. With `model.diffusion` there is one more
    input row, whose id is `vocab_size`: the mask, which no output stands for.
    """

    def __init__(
        self, params: ModelParams, vocab_size: int, seed: int | None = 0, *, end_of_text: int | None = None
    ) -> None:
        super().__init__()
        assert end_of_text is not None or not params.document_mask, "a document mask needs the end-of-text token"
        self.params, self.vocab_size, self.end_of_text = params, vocab_size, end_of_text
        self.token_embedding = nn.Embedding(vocab_size, params.d_model)
        if params.position == "learned":
            self.position_embedding = nn.Embedding(params.context_length, params.d_model)
        self.dropout = nn.Dropout(params.dropout)
        self.blocks = nn.ModuleList(Block(params, layer) for layer in range(params.n_layers))
        self.final_norm = build_norm(params, params.d_model)
        self.head = Linear(params.d_model, vocab_size, bias=False)
        if params.tie_embeddings:
            self.head.weight = self.token_embedding.weight
        if params.diffusion.block_size is not None:  # the last to be drawn: all else is as without it
            self.mask_embedding = nn.Embedding(1, params.d_model)
        if seed is not None:  # None: the weights come from elsewhere
            self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw every weight anew; a pure function of the seed, on any device.

        | weight                                       | value                                                   |
        |----------------------------------------------|---------------------------------------------------------|
        | embeddings, head, matrices                   | normal, standard deviation 0.02 (GPT-2)                 |
        | projections that add to the residual stream  | normal, 0.02 / sqrt(2 n_layers) (GPT-2, section 2.3)    |
        | norm gains                                   | 1                                                       |
        | biases                                       | 0                                                       |
        """
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            deviation = 0.02 / math.sqrt(2 * self.params.n_layers) if "projection" in name else 0.02
            weight.copy_(torch.empty(weight.shape).normal_(0.0, deviation, generator=generator))

    def hidden(self, tokens: Tensor, cache: CacheView | None = None, mask_blocks: Tensor | None = None) -> Tensor:
        """The final hidden state (B, T, D) of `tokens` (B, T); with a cache they go on where that says.

        With `mask_blocks` (B, n), positions in the text, a block of masks for each of them comes behind it:
        (B, T + N, D). They see the text up to and with that position.
        """
        time, size = tokens.shape[1], self.params.diffusion.block_size
        assert cache is not None or time <= self.params.context_length
        positions = cache.positions if cache else torch.arange(time, device=tokens.device)
        mask = self._find_mask(tokens, cache, mask_blocks)
        if mask_blocks is not None:
            assert size is not None, "a model without masks: set model.diffusion.block_size"
            spread = spread_masks(mask_blocks, size)
            positions = torch.cat((positions.expand(len(tokens), time), spread), dim=1)
            tokens = F.pad(tokens, (0, spread.shape[1]), value=self.vocab_size)
        x = self._embed(tokens)  # (B, T, D)
        rotary = None
        if self.params.position == "learned":
            # Masks at the end of the context, whose guesses are then bad ones, may be beyond it.
            x = x + self.position_embedding(positions.clamp(max=self.params.context_length - 1))
        else:
            width, base = self.params.head_width, self.params.rope_base
            rotary = rotary_tables(positions[:, None] if positions.dim() > 1 else positions, width, base)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, rotary, mask, cache)
        normed: Tensor = self.final_norm(x)
        return normed

    def _embed(self, tokens: Tensor) -> Tensor:
        """The input rows (B, T, D) of tokens and masks."""
        if self.params.diffusion.block_size is None:
            embedded: Tensor = self.token_embedding(tokens)
            return embedded
        is_mask = tokens == self.vocab_size
        rows = self.token_embedding(tokens.masked_fill(is_mask, 0))
        return torch.where(is_mask[..., None], self.mask_embedding.weight, rows)

    def _find_mask(self, tokens: Tensor, cache: CacheView | None, mask_blocks: Tensor | None) -> Mask | None:
        """What `tokens` (B, T) may see of the cache and of themselves; None where plain causal attention says it all.

        Positions are not restarted in a document: rotary ones see distances alone, and with learned ones a text that a
        window cuts in two has no beginning to count from.
        """
        text, documents = cache.mask if cache else None, None
        if self.params.document_mask:
            assert self.end_of_text is not None
            if cache:
                text = cache.mask_documents(tokens, self.end_of_text)
            else:
                documents = number_documents(tokens, self.end_of_text)
                text = mask_documents(documents)
        size = self.params.diffusion.block_size
        if mask_blocks is None or size is None:
            return text
        assert cache is None
        masks = TidarMask(mask_blocks, size, tokens.shape[1], documents)
        # FlexAttention has no dropout and takes no narrow heads, and pays on a card when compiled.
        has_kernel = self.params.head_width >= 16 and not self.params.dropout
        is_flexible = tokens.device.type == "cuda" and self.training and has_kernel
        return FusedMask(text, masks.sparsely() if is_flexible else masks.densely(), tokens.shape[1])

    def logits(self, hidden: Tensor) -> Tensor:
        """The score of every token, (..., V), from the final hidden state (..., D)."""
        scores: Tensor = self.head(hidden)
        cap = self.params.logit_softcap
        # Scores stay within the cap, smoothly (Gemma 2, arXiv:2408.00118).
        return scores if cap is None else cap * torch.tanh(scores.float() / cap)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        cache: CacheView | None = None,
        mode: Literal["ar", "diffusion", "both"] = "ar",
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V) and, with `targets` (B, T), the mean cross-entropy in nats per token.

        | mode      | logits                                            | loss                                     |
        |-----------|---------------------------------------------------|------------------------------------------|
        | ar        | of the text, a plain GPT's                        | autoregressive                           |
        | diffusion | of masks in blocks side by side, in one forward   | diffusion                                |
        | both      | of the text                                       | (ar + weight x diffusion) / (1 + weight) |

        `forward_tidar` returns the parts of the last two by name. Training uses `LanguageModelLoss`, which does without
        the logits of a whole batch.
        """
        if mode == "ar":
            logits = self.logits(self.hidden(tokens, cache))
            return logits, None if targets is None else measure_cross_entropy(logits, targets)
        assert cache is None
        output = self.forward_tidar(tokens, targets)
        if mode == "diffusion":
            return output.diffusion_logits, output.diffusion_loss
        return output.logits, output.loss

    def forward_tidar(self, tokens: Tensor, targets: Tensor | None = None) -> TidarOutput:
        """Logits and losses of `tokens` (B, T) with blocks of masks side by side, in one forward pass.

        Row t of the masks sees the text up to the first token of its block. Learned positions end with the context, and
        so may the last block.
        """
        size, time = self.params.diffusion.block_size, tokens.shape[1]
        assert size is not None, "a model without masks: set model.diffusion.block_size"
        last = self.params.context_length - size if self.params.position == "learned" else time
        mask_blocks = torch.arange(0, min(time, last), size, device=tokens.device).expand(len(tokens), -1)
        hidden = self.hidden(tokens, mask_blocks=mask_blocks)
        logits, masks_logits = self.logits(hidden[:, :time]), self.logits(hidden[:, time : 2 * time])
        if targets is None:
            return TidarOutput(logits, masks_logits)
        ar, weight = measure_cross_entropy(logits, targets), self.params.diffusion.weight
        diffusion = measure_cross_entropy(masks_logits, targets[:, : masks_logits.shape[1]])
        return TidarOutput(logits, masks_logits, (ar + weight * diffusion) / (1 + weight), ar, diffusion)

    @classmethod
    def outline(cls, params: ModelParams, vocab_size: int, end_of_text: int | None = 0) -> "GPT":
        """The model's shapes without its weights, in no time and no memory; none depends on `end_of_text`."""
        with torch.device("meta"):
            return cls(params, vocab_size, seed=None, end_of_text=end_of_text)

    @classmethod
    def of_weights(
        cls, params: ModelParams, vocab_size: int, weights: dict[str, Tensor], *, end_of_text: int | None = None
    ) -> "GPT":
        """The model in evaluation mode whose weights these tensors are, not copies of them; a tied head needs none."""
        model = cls.outline(params, vocab_size, end_of_text)
        if params.tie_embeddings:
            weights = {**weights, "head.weight": weights["token_embedding.weight"]}
        model.load_state_dict(weights, assign=True)
        if params.tie_embeddings:
            model.head.weight = model.token_embedding.weight
        return model.eval()

    def without_masks(self) -> "GPT":
        """The plain GPT that the model is but for the masks' input row, of the same weights."""
        if self.params.diffusion.block_size is None:
            return self
        params = self.params.model_copy(update={"diffusion": DiffusionParams()})
        weights = {name: weight for name, weight in self.state_dict().items() if name != "mask_embedding.weight"}
        return GPT.of_weights(params, self.vocab_size, weights, end_of_text=self.end_of_text)

    def build_cache(self, rows: int, capacity: int, scratch: int = 0) -> KeyValueCache:
        """An empty cache for so many texts of at most `capacity` tokens, where the model is and of its type.

        `scratch` is room behind them for new tokens that are no part of a text (see `Layout`).
        """
        params, weight = self.params, self.token_embedding.weight
        assert capacity <= params.context_length
        shape = (params.n_layers, rows, params.kv_heads, capacity + scratch, params.head_width)
        return KeyValueCache(*shape, device=weight.device, dtype=weight.dtype)

    def count_parameters(self) -> int:
        """Trainable numbers, tied weights once."""
        return sum(weight.numel() for weight in self.parameters())
