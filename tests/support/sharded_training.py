"""What test_sharding.py runs in several processes, and in its own for comparison: steps by hand, every way of sharing.

PROCESSES=2 JOBS='[{"sharding": "full"}]' python -m sharded_training    # writes job-0.json and job-0.safetensors
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from tiny import TINY_MODEL
from torch import Tensor, nn

from lmcore.errors import report_errors
from lmcore.hardware.distributed import World, join_world, launch, split_batch
from lmcore.model.gpt import GPT
from lmcore.train.loss import LanguageModelLoss
from lmcore.train.mask_blocks import choose_mask_blocks
from lmcore.train.sharding import Sharding, distribute, gather_tensor, shard_like, sync_gradients, whole_weights
from lmcore.train.step import Batch

VOCABULARY = 257  # of bytes, and odd: no number of processes divides it
DRAWN = 16  # of them: the loss falls from 5.5 to 2.8. Where nothing can be learnt, rounding grows to 1e-3 in 50 steps
BATCH = 12
STEPS = 50


class Job(BaseModel, frozen=True, extra="forbid"):
    """One training, from step `first` (with the state of `load`) to `last`."""

    sharding: Sharding = "replicate"
    micro_batch_size: int = BATCH
    recompute: bool = False
    document_mask: bool = False
    masks_from: int | None = None  # the first step with blocks of masks
    load: str | None = None
    first: int = 0
    last: int = STEPS


class Training:
    """A tiny model, shared out as the job says, and its optimizer."""

    def __init__(self, world: World, job: Job) -> None:
        self.world, self.job = world, job
        params = TINY_MODEL.model_copy(update={"document_mask": job.document_mask})
        if job.masks_from is not None:
            diffusion = params.diffusion.model_copy(
                update={"block_size": 3, "start_fraction": job.masks_from / STEPS, "block_fraction": 0.5}
            )
            params = params.model_copy(update={"diffusion": diffusion})
        self.model = GPT(params, VOCABULARY, seed=1, end_of_text=1)
        loss = LanguageModelLoss(self.model)
        self.objective = distribute(loss, world, job.sharding, "cpu", activation_checkpointing=job.recompute)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, weight_decay=0.1, fused=True)
        if job.load:
            self.restore(load_file(job.load))

    def named(self) -> dict[str, Tensor]:
        """Weights and optimizer state, as this process holds them."""
        weights = dict(self.model.named_parameters())
        state = {
            f"{key}/{name}": value
            for name, weight in weights.items()
            for key, value in self.optimizer.state[weight].items()
        }
        return {**{name: weight.detach() for name, weight in weights.items()}, **state}

    def collect(self) -> dict[str, Tensor]:
        return {name: gather_tensor(tensor) for name, tensor in self.named().items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        for name, weight in self.model.named_parameters():
            weight.copy_(shard_like(tensors[name], weight))
            state = {"step": tensors[f"step/{name}"]}
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = shard_like(tensors[f"{key}/{name}"], weight)
            self.optimizer.state[weight] = state

    def update(self, step: int) -> tuple[float, float]:
        """One step on the batch that the step's number gives; its loss and its gradient's norm."""
        generator = torch.Generator().manual_seed(step)
        batch = torch.randint(DRAWN, (BATCH, TINY_MODEL.context_length + 1), generator=generator)
        part = split_batch(BATCH, self.world)
        blocks = choose_mask_blocks(self.model.params, 1, STEPS, BATCH, step)
        windows = batch[part]
        pieces = list(Batch(windows, None if blocks is None else blocks[part]).split(self.job.micro_batch_size))
        total = torch.zeros(())
        for number, piece in enumerate(pieces, 1):
            share = len(piece.windows) / len(windows)
            with sync_gradients(self.objective, number == len(pieces)):
                loss = self.objective(piece.windows[:, :-1], piece.windows[:, 1:], piece.mask_blocks).total
                (loss * share).backward()
            total += loss.detach() * share
        norm = gather_tensor(nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.world.all_reduce(total).item() / self.world.size, norm.item()

    def run(self) -> dict[str, Any]:
        validations, steps = [], []
        for step in range(self.job.first, self.job.last):
            validations.append(self.validate())
            steps.append(self.update(step))
        named = self.named()
        parts = {name: shard_like(gather_tensor(tensor), tensor) for name, tensor in named.items()}
        return {
            "losses": [loss for loss, _ in steps],
            "norms": [norm for _, norm in steps],
            "names": list(named),
            "parts_are_equal": all(torch.equal(local(parts[name]), local(named[name])) for name in named),
            "numbers_held": sum(local(weight).numel() for weight in self.model.parameters()),
            "validations": validations,
        }

    def validate(self) -> float:
        """As the evaluate stage reads a model: not through the objective, and here in the main process alone."""
        tokens = torch.arange(2 * TINY_MODEL.context_length).view(2, -1)
        before = [weight.shape for weight in self.model.parameters()]
        score = 0.0
        with whole_weights(self.objective):
            if self.world.is_main:
                with torch.inference_mode():
                    score = self.model.hidden(tokens).square().mean().item()
        assert [weight.shape for weight in self.model.parameters()] == before
        return score


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    held: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return held


def main() -> None:
    launch(int(os.environ["PROCESSES"]), "sharded_training")
    torch.use_deterministic_algorithms(True)
    with join_world("cpu") as world:
        for number, job in enumerate(json.loads(os.environ["JOBS"])):
            training = Training(world, Job(**job))
            result, tensors = training.run(), training.collect()
            if world.is_main:
                Path(f"job-{number}.json").write_text(json.dumps(result))
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, f"job-{number}.safetensors")
            world.barrier()


if __name__ == "__main__":
    with report_errors():
        main()
