"""Low-rank adaptation: frozen weights, and beside each matrix of the blocks a small product that learns its change.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

import math

import torch
from torch import Tensor, nn

from lmcore.files import derive_seed
from lmcore.model.gpt import GPT
from lmcore.model.linear import Linear
from lmcore.train.params import TrainParams


class AdaptedLinear(Linear):
    """A linear layer whose weight W (out, in) acts as W + scale * up @ down; `down` (rank, in), `up` (out, rank).

    It begins as the layer was: `up` is zero. The layer's own names stay, those of the two come beside them.
    """

    def __init__(self, layer: Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias, self.scale = layer.weight, layer.bias, scale
        drawn = torch.empty(rank, layer.in_features).normal_(0.0, 1 / math.sqrt(layer.in_features), generator=generator)
        self.down = nn.Parameter(drawn.to(layer.weight.device))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, device=layer.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., in) -> (..., out)."""
        return super().forward(x) + self.scale * nn.functional.linear(nn.functional.linear(x, self.down), self.up)

    @torch.no_grad()
    def merge(self) -> Tensor:
        """The weight that does the same alone."""
        return self.weight + self.scale * self.up @ self.down


def adapt_model(model: GPT, params: TrainParams) -> None:
    """With `train.lora_rank`, freeze the model and put adapters beside the linear layers of its blocks."""
    if params.lora_rank is None:
        return
    generator = torch.Generator().manual_seed(derive_seed(params.seed, "lora"))
    model.requires_grad_(False)
    if model.params.diffusion.block_size is not None:  # the weights that are adapted may never have seen a mask
        model.mask_embedding.requires_grad_(True)
    for module in list(model.blocks.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, Linear):
                scale = params.lora_alpha / params.lora_rank
                setattr(module, name, AdaptedLinear(layer, params.lora_rank, scale, generator))


def merge_adapters(model: GPT) -> GPT:
    """The plain model that computes what an adapted one does, of its weights where they are the same; else itself."""
    adapted = {f"{name}.": layer for name, layer in model.named_modules() if isinstance(layer, AdaptedLinear)}
    if not adapted:
        return model
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    for prefix, layer in adapted.items():
        del weights[f"{prefix}down"], weights[f"{prefix}up"]
        weights[f"{prefix}weight"] = layer.merge()
    return GPT.of_weights(model.params, model.vocab_size, weights, end_of_text=model.end_of_text)
