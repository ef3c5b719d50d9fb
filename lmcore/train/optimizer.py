"""AdamW over the usual groups of weights, and its state by name."""

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lmcore.train.settings import TrainParams


def build_optimizer(model: nn.Module, params: TrainParams) -> Optimizer:
    """Fused AdamW (Loshchilov & Hutter, arXiv:1711.05101): one pass over the weights, on CPU as on CUDA.

    | weights                       | weight decay          |
    |-------------------------------|-----------------------|
    | matrices, embeddings, head    | `train.weight_decay`  |
    | norm gains, biases (one-d)    | 0                     |
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return AdamW(
        [
            {"params": [weight for weight in weights if weight.dim() >= 2], "weight_decay": params.weight_decay},
            {"params": [weight for weight in weights if weight.dim() < 2], "weight_decay": 0.0},
        ],
        lr=params.learning_rate,
        betas=(params.beta1, params.beta2),
        fused=True,
    )


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Put every group at `learning_rate`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def collect_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state as `optimizer/KEY/WEIGHT`."""
    names: dict[Tensor, str] = {weight: name for name, weight in model.named_parameters()}
    return {
        f"optimizer/{key}/{names[weight]}": value
        for weight, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_state(optimizer: Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `collect_state` gave; other entries of `tensors` are left alone."""
    weights = dict(model.named_parameters())
    for path, value in tensors.items():
        kind, _, rest = path.partition("/")
        if kind == "optimizer":
            key, _, name = rest.partition("/")
            optimizer.state[weights[name]][key] = value.to(weights[name].device)
