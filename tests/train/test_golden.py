"""Golden losses: a change that should not alter the numbers shows the same ones.

They were made on the CPU in fp32. After a change that is meant to alter them, run this file: the failure prints the
new row to put here, and the commit message says why.
"""

import pytest
import torch
from tiny import GPT2_MODEL, TINY_MODEL, TINY_TRAIN

from lmcore.hardware.distributed import World
from lmcore.hardware.resolve import Hardware
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.tokens.batches import Batches
from lmcore.tokens.dataset import TokenDataset
from lmcore.train.loss import LanguageModelLoss
from lmcore.train.optimizer import build_optimizers
from lmcore.train.schedule import plan_schedule
from lmcore.train.state import TrainState
from lmcore.train.step import Batch, accumulate_gradients, update_weights

GOLDEN = {
    "modern": [5.5818, 4.0853, 3.3270, 3.1010],
    "gpt2": [5.5603, 4.1031, 3.2557, 3.1111],
}
MODELS = {"modern": TINY_MODEL, "gpt2": GPT2_MODEL}


def train_losses(model_params: ModelParams, dataset: TokenDataset, micro_batch_size: int) -> list[float]:
    hardware = Hardware("cpu", "cpu", "fp32", micro_batch_size, compile=False, compile_reason="a test", threads=1)
    model = GPT(model_params, dataset.train.vocab_size, TINY_TRAIN.seed)
    state = TrainState(model, LanguageModelLoss(model), build_optimizers(model, TINY_TRAIN))
    schedule = plan_schedule(TINY_TRAIN, model_params.context_length, dataset.train.tokens)
    batches = Batches(dataset.train, TINY_TRAIN.batch_size, model_params.context_length, TINY_TRAIN.seed)
    losses = []
    for step in range(schedule.steps):
        windows = torch.from_numpy(batches.at(step))
        loss = accumulate_gradients(state, Batch(windows), step, TINY_TRAIN, hardware, World())
        update_weights(state, loss.total, schedule.learning_rate(step), TINY_TRAIN)
        losses.append(loss.total.item())
    return losses


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_golden_losses(name: str, micro_batch_size: int, dataset: TokenDataset) -> None:
    losses = train_losses(MODELS[name], dataset, micro_batch_size)
    golden = [losses[step] for step in (0, 4, 8, 11)]
    assert golden == pytest.approx(GOLDEN[name], abs=1e-4), f"now {[round(loss, 4) for loss in golden]}"
