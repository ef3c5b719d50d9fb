"""Optimizers by name, and their state by the weights' names.

An optimizer that `train.optimizer` may name is an entry of OPTIMIZERS.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lmcore.train.muon import Muon
from lmcore.train.sharding import shard_like

# TrainParams, which imports this module for the names: not imported here, its keys are read as attributes.
OptimizerParams = Any
Weights = Mapping[str, Tensor]


class OptimizerKind(NamedTuple):
    """An optimizer that `train.optimizer` may name, and its memory.

    `build` gets the trained weights by name and the type that matrix products may be computed in. `matrix_state` and
    `other_state` are fp32 numbers that it keeps for each parameter of the blocks' matrices and of the rest;
    `work_bytes` what a step takes beside them for each parameter of the most common shape.
    """

    build: Callable[[Weights, OptimizerParams, torch.dtype], list[Optimizer]]
    matrix_state: int
    other_state: int
    work_bytes: int = 0
    trains_adapters: bool = True  # with train.lora_rank


def build_adamw(weights: Weights, params: OptimizerParams, _: torch.dtype) -> list[Optimizer]:
    """Build fused AdamW (Loshchilov & Hutter, arXiv:1711.05101); norm gains and biases (one-d) do not decay."""
    groups = [
        {"params": [weight for weight in weights.values() if weight.dim() >= 2], "weight_decay": params.weight_decay},
        {"params": [weight for weight in weights.values() if weight.dim() < 2], "weight_decay": 0.0},
    ]
    return [AdamW(groups, lr=params.learning_rate, betas=(params.beta1, params.beta2), eps=1e-8, fused=True)]


def build_muon(weights: Weights, params: OptimizerParams, dtype: torch.dtype) -> list[Optimizer]:
    """Build Muon for the matrices inside the blocks, and AdamW for embeddings, head, norm gains and biases."""
    matrices = {name: weight for name, weight in weights.items() if is_hidden_matrix(name, weight)}
    rest = {name: weight for name, weight in weights.items() if name not in matrices}
    muon = Muon(matrices.values(), params.learning_rate, params.weight_decay, params.muon_momentum, dtype)
    return [muon, *build_adamw(rest, params, dtype)]


# A new optimizer is an entry here. Muon's work is measured: 18 bytes, 14 in bfloat16.
OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind(build_adamw, matrix_state=2, other_state=2),
    "muon": OptimizerKind(build_muon, matrix_state=1, other_state=2, work_bytes=18, trains_adapters=False),
}


def build_optimizers(model: nn.Module, params: OptimizerParams, dtype: torch.dtype = torch.float32) -> list[Optimizer]:
    """Build the optimizers of the trained weights that `train.optimizer` names; `dtype` as in `OptimizerKind`."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return OPTIMIZERS[params.optimizer].build(weights, params, dtype)


def is_hidden_matrix(name: str, weight: Tensor) -> bool:
    """Whether Muon may have it: a matrix inside a block, not an embedding or the head."""
    return name.startswith("blocks.") and weight.dim() == 2


def set_learning_rate(optimizers: Sequence[Optimizer], learning_rate: float) -> None:
    """Put every group at `learning_rate`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate


def name_state(optimizers: Sequence[Optimizer], model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the optimizers' state as `optimizer/KEY/WEIGHT`."""
    names: dict[Tensor, str] = {weight: name for name, weight in model.named_parameters()}
    for optimizer in optimizers:
        for weight, state in optimizer.state.items():
            yield from ((f"optimizer/{key}/{names[weight]}", value) for key, value in state.items())


def put_state(optimizers: Sequence[Optimizer], model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `name_state` gave, on the weights' devices; what has a weight's shape is sharded as it is."""
    weights = dict(model.named_parameters())
    owners = {
        weight: optimizer for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]
    }
    for path, value in tensors.items():
        _, key, name = path.split("/", 2)
        weight = weights[name]
        placed = shard_like(value, weight) if value.shape == weight.shape else value.to(weight.device)
        owners[weight].state[weight][key] = placed
