"""Golden losses: a change that should not alter the numbers shows the same ones.

They were made on the CPU in fp32. After a change that is meant to alter them, run this file: the failure prints the
new row to put here, and the commit message says why.
"""

import pytest
import torch
from tiny import GPT2_MODEL, TINY_MODEL, TINY_TRAIN

from lmcore.hardware import Hardware
from lmcore.model.gpt import GPT, ModelParams
from lmcore.tokens.batches import Batches
from lmcore.tokens.dataset import TokenDataset
from lmcore.train.loop import accumulate_gradients
from lmcore.train.optimizer import build_optimizer, set_learning_rate
from lmcore.train.schedule import scale_learning_rate

GOLDEN = {
    "modern": [5.5818, 4.0853, 3.3270, 3.1010],
    "gpt2": [5.5603, 4.1031, 3.2557, 3.1111],
}
MODELS = {"modern": TINY_MODEL, "gpt2": GPT2_MODEL}


def train_losses(model_params: ModelParams, dataset: TokenDataset, micro_batch_size: int) -> list[float]:
    hardware = Hardware("cpu", "cpu", "fp32", micro_batch_size, compile=False, compile_reason="a test", threads=1)
    model = GPT(model_params, dataset.train.vocab_size, TINY_TRAIN.seed)
    optimizer = build_optimizer(model, TINY_TRAIN)
    batches = Batches(dataset.train, TINY_TRAIN.batch_size, model_params.context_length, TINY_TRAIN.seed)
    losses = []
    for step in range(TINY_TRAIN.max_steps):
        set_learning_rate(optimizer, TINY_TRAIN.learning_rate * scale_learning_rate(step, TINY_TRAIN))
        losses.append(accumulate_gradients(model, batches.at(step), TINY_TRAIN.seed, step, hardware).item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_golden_losses(name: str, micro_batch_size: int, dataset: TokenDataset) -> None:
    losses = train_losses(MODELS[name], dataset, micro_batch_size)
    golden = [losses[step] for step in (0, 4, 8, 11)]
    assert golden == pytest.approx(GOLDEN[name], abs=1e-4), f"now {[round(loss, 4) for loss in golden]}"
