"""AdamW, or Muon for the matrices inside the blocks and AdamW for the rest; which weights decay; the state by name."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lmcore.train.muon import Muon
from lmcore.train.params import TrainParams

ADAM_EPSILON = 1e-8


def build_optimizers(model: nn.Module, params: TrainParams, muon_dtype: torch.dtype = torch.float32) -> list[Optimizer]:
    """Fused AdamW (Loshchilov & Hutter, arXiv:1711.05101) and, if chosen, Muon; `muon_dtype` is what it multiplies in.

    | weights                             | adamw  | muon   | weight decay          |
    |-------------------------------------|--------|--------|-----------------------|
    | matrices of attention and MLP       | AdamW  | Muon   | `train.weight_decay`  |
    | embeddings, head                    | AdamW  | AdamW  | `train.weight_decay`  |
    | norm gains, biases (one-d)          | AdamW  | AdamW  | 0                     |
    """
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    muon = {name for name in weights if params.optimizer == "muon" and is_hidden_matrix(name, weights[name])}
    rest = [weight for name, weight in weights.items() if name not in muon]
    decayed, undecayed = (
        [weight for weight in rest if weight.dim() >= 2],
        [weight for weight in rest if weight.dim() < 2],
    )
    adamw = AdamW(
        [
            {"params": decayed, "weight_decay": params.weight_decay},
            {"params": undecayed, "weight_decay": 0.0},
        ],
        lr=params.learning_rate,
        betas=(params.beta1, params.beta2),
        eps=ADAM_EPSILON,
        fused=True,
    )
    if not muon:
        return [adamw]
    matrices = [weights[name] for name in weights if name in muon]
    return [Muon(matrices, params.learning_rate, params.weight_decay, params.muon_momentum, muon_dtype), adamw]


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


def put_state(optimizers: Sequence[Optimizer], model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `name_state` gave, `tensors` by the same names."""
    weights = dict(model.named_parameters())
    owners = {
        weight: optimizer for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]
    }
    for path, value in tensors.items():
        _, key, name = path.split("/", 2)
        owners[weights[name]].state[weights[name]][key] = value
