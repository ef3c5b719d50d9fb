"""Muon: momentum whose matrices are made orthogonal, for the two-dimensional weights inside the blocks.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", kellerjordan.github.io/posts/muon, 2024; step
size after Liu et al., "Muon is Scalable for LLM Training", arXiv:2502.16982, so that AdamW's learning rate and weight
decay serve both. The numbers are those of `torch.optim.Muon`, with two differences: matrices of one shape are treated
together, and the working precision can be chosen (that one always works in bfloat16, which a processor without
such instructions multiplies a hundred times more slowly than fp32).
"""

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lmcore.train.sharding import gather_tensor, shard_like


class Muon(Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    A step whose `found_inf` (a tensor, 0 or 1, set from outside as on torch's fused AdamW) is 1 changes nothing.
    """

    found_inf: Tensor | None = None

    def __init__(
        self, weights: Iterable[Tensor], lr: float, weight_decay: float, momentum: float, dtype: torch.dtype
    ) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "dtype": dtype})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            weights = (weight for weight in group["params"] if weight.grad is not None)
            by_shape = sorted(weights, key=lambda weight: tuple(weight.shape))
            for _, same in groupby(by_shape, key=lambda weight: weight.shape):
                self._move(list(same), group)

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Move the `weights`, all of one shape (m, n)."""
        momentum, rate = group["momentum"], group["lr"]
        applied: Tensor | float = 1.0
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if self.found_inf is not None:
            applied = 1 - self.found_inf
            for gradient in gradients:  # nothing times 0 is NaN's answer
                gradient.nan_to_num_(0.0, 0.0, 0.0)
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        averages = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(averages, gradients, (1 - momentum) * applied)
        updates = torch._foreach_lerp(gradients, averages, momentum)  # Nesterov
        whole = torch.stack([gather_tensor(update) for update in updates]).to(group["dtype"])  # (count, m, n)
        step_size = 0.2 * rate * max(whole.shape[1:]) ** 0.5  # a root mean square as that of AdamW's updates
        directions = (orthogonalise(whole).to(weights[0].dtype) * (step_size * applied)).unbind()
        torch._foreach_mul_(weights, 1 - rate * group["weight_decay"] * applied)
        torch._foreach_sub_(weights, [shard_like(*pair) for pair in zip(directions, weights, strict=True)])


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices to `matrices` (count, m, n), roughly: singular values near 1.

    A quintic Newton-Schulz iteration; its coefficients trade exactness for speed (values end between 0.7 and 1.2).
    """
    first, second, third = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
        x = torch.baddbmm(x, polynomial, x, beta=first)
    return x.mT if tall else x
