"""One model on several devices: copied or cut up, from outside, and whole again where it is saved."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lmcore.hardware.distributed import World
from lmcore.hardware.params import Sharding
from lmcore.train.loss import LanguageModelLoss


def distribute(
    objective: LanguageModelLoss,
    world: World,
    sharding: Sharding,
    device: str,
    *,
    activation_checkpointing: bool,
) -> nn.Module:
    """The module that a training step calls; `objective` lies on `device` and has the same weights on every process.

    | sharding  | each process holds                                   | by                      |
    |-----------|------------------------------------------------------|-------------------------|
    | replicate | all weights, gradients and optimizer state           | DistributedDataParallel |
    | full      | its part of them; one block at a time is put together | FSDP2 `fully_shard`     |

    Both average the gradients over the processes. Weights keep their names; with `full` they become DTensors, hence
    the optimizer is built afterwards. With `activation_checkpointing` a block keeps its input alone and computes the
    rest again for the backward pass, with the same dropout masks.
    """
    blocks = objective.model.blocks
    if activation_checkpointing:
        for block in blocks:
            _recompute(block)
    if world.size == 1:
        return objective
    module: nn.Module = objective
    if sharding == "full":
        # What is outside the blocks belongs to the objective, which reaches for embedding and head without calling
        # them.
        mesh = init_device_mesh(device, (world.size,))
        for part in (*blocks, objective):
            fully_shard(part, mesh=mesh)
    else:
        module = DistributedDataParallel(objective, gradient_as_bucket_view=True)
    # The first pass is not like the others. DDP puts its buckets in another order after it, and the place in a bucket
    # decides in which order processes are summed: from three on, a resumed run differed from an uninterrupted one.
    # FSDP takes the first module that runs for the root, and a validation may come first.
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=device)
    with torch.compiler.set_stance("force_eager"):
        module(tokens, tokens).total.backward()
    module.zero_grad(set_to_none=True)
    return module


def _recompute(block: nn.Module) -> None:
    """Compute the block again in the backward pass (Chen et al., arXiv:1604.06174).

    torch's CheckpointWrapper does the same and renames the weights. A function, since torch.compile passes over a
    block whose forward is a functools.partial and leaves it uncompiled without a word.
    """
    forward = block.forward

    def forward_and_forget(*inputs: Any) -> Any:
        return checkpoint(forward, *inputs, use_reentrant=False)

    block.forward = forward_and_forget


def sync_gradients(objective: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
    """Forward and backward pass of one micro-batch; only the last of a step's needs to be `enabled`.

    With `full` gradients are averaged each time: kept for later they would be whole, 4 bytes for each weight.
    """
    if isinstance(objective, DistributedDataParallel) and not enabled:
        return objective.no_sync()
    return nullcontext()


@contextmanager
def whole_weights(objective: nn.Module) -> Iterator[None]:
    """The weights whole on every process, for what reads the model without `objective`: validation, sampling.

    Nothing inside waits for other processes, so that each may do something else. All enter and leave together.
    Weights that are written inside are lost.
    """
    shards = [module for module in objective.modules() if isinstance(module, FSDPModule)]
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    try:
        yield
    finally:
        if shards:
            # Cuts up the weights, and forgets which blocks ran: FSDP fetches them in that order in the next backward
            # pass, and processes that had run different ones waited for each other for ever.
            shards[0].reset_iter_state()
        for number, shard in enumerate(shards):
            shard.set_reshard_after_forward(number > 0, recurse=False)  # as fully_shard has it: the root stays whole


def gather_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every process; all call it, in the same order. A whole one is given back as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """What this process holds of `full`, a tensor that all have, where it is cut up as `like`; and on its device.

    The inverse of `gather_tensor`: a checkpoint is the same file whatever the number of processes. Each takes its own
    part, nothing is sent.
    """
    if not isinstance(like, DTensor):
        return full.to(like.device)
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
