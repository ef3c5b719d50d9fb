"""Everything that a training step changes, and by what names it goes into a checkpoint."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lmcore.errors import ArtifactError
from lmcore.model.gpt import GPT
from lmcore.train.optimizer import name_state, put_state
from lmcore.train.sharding import gather_tensor, shard_like


class TrainState:
    """Model, optimizers, and the few numbers beside them.

    | name in a checkpoint       | what                                                                   |
    |----------------------------|------------------------------------------------------------------------|
    | model/WEIGHT               | weights in fp32; a tied head is its embedding, stored once             |
    | optimizer/KEY/WEIGHT       | what the optimizer remembers of each weight                            |
    | average/WEIGHT             | the moving average of the weights, with `train.ema_decay`              |
    | skipped_steps              | updates that were not finite and not made                              |
    | loss_scale, scaled_steps   | fp16 only: the factor on the loss, updates since it changed            |

    `objective` is the module that a step calls, the model with its loss, compiled or distributed.
    """

    def __init__(
        self, model: GPT, objective: nn.Module, optimizers: list[Optimizer], *, ema: bool = False, fp16: bool = False
    ) -> None:
        self.model, self.objective, self.optimizers = model, objective, optimizers
        self.reported_skips = 0
        device = model.token_embedding.weight.device
        self.average = {name: weight.detach().clone() for name, weight in model.named_parameters()} if ema else {}
        self.counters = {"skipped_steps": torch.zeros((), device=device)}
        if fp16:
            self.counters |= {
                "loss_scale": torch.full((), 65536.0, device=device),
                "scaled_steps": torch.zeros((), device=device),
            }

    def collect(self) -> dict[str, Tensor]:
        """Every tensor by its name, whole also where it is sharded: all processes must call this."""
        named: dict[str, Tensor] = {f"model/{name}": weight for name, weight in self.model.named_parameters()}
        named |= dict(name_state(self.optimizers, self.model))
        named |= {f"average/{name}": value for name, value in self.average.items()}
        return {name: gather_tensor(value.detach()) for name, value in {**named, **self.counters}.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `collect` gave, sharded as this run is.

        Raises ArtifactError, before anything is changed, if the tensors are those of another model or optimizer.
        """
        places: dict[str, Tensor] = {f"model/{name}": weight for name, weight in self.model.named_parameters()}
        places |= {f"average/{name}": value for name, value in self.average.items()} | self.counters
        optimizers = {name: tensor for name, tensor in tensors.items() if name.startswith("optimizer/")}
        found = {name: tensor for name, tensor in tensors.items() if name not in optimizers}
        other_shapes = (name for name in places if places[name].shape != found[name].shape)
        if wrong := sorted(places.keys() ^ found.keys()) or sorted(other_shapes):
            raise ArtifactError(
                f"the checkpoint is another model's or optimizer's (it differs in {', '.join(wrong[:3])}, "
                f"{len(wrong)} in all): remove the run's folder in runs/ to start afresh"
            )
        for name, place in places.items():
            place.copy_(shard_like(found[name], place))
        put_state(self.optimizers, self.model, optimizers)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the moving average as its weights, if there is one, while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        weights = dict(self.model.named_parameters())
        for name, average in self.average.items():
            kept = weights[name].clone()
            weights[name].copy_(average)
            average.copy_(kept)
