"""A compiled step: the same bytes from every process, and the eager step's loss."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Several threads: only then does an addition in no fixed order show.
PROGRAM = """
import hashlib, sys
import torch
from tiny import TINY_MODEL, TINY_TRAIN
from lmcore.hardware.distributed import World
from lmcore.hardware.resolve import Hardware
from lmcore.model.gpt import GPT
from lmcore.train.mask_blocks import choose_mask_blocks
from lmcore.train.trainer import build_state
from lmcore.train.step import Batch, accumulate_gradients, update_weights

hardware = Hardware("cpu", "cpu", "fp32", 16, compile=sys.argv[1] == "compiled", compile_reason="a test", threads=2)
params = TINY_MODEL.model_copy(update={"context_length": 256, "document_mask": sys.argv[2] == "masked"})
if sys.argv[2] == "guessing":  # from the third step on
    diffusion = params.diffusion.model_copy(update={"block_size": 4, "start_fraction": 0.5})
    params = params.model_copy(update={"diffusion": diffusion})
model = GPT(params, 50, seed=1, end_of_text=0)
state = build_state(model, TINY_TRAIN, hardware, World())
windows = torch.randint(50, (16, 257), generator=torch.Generator().manual_seed(1))
for step in range(4):
    batch = Batch(windows, choose_mask_blocks(params, 1, 4, 16, step))
    loss = accumulate_gradients(state, batch, step, TINY_TRAIN, hardware, World())
    update_weights(state, loss.total, 0.01, TINY_TRAIN)
weights = b"".join(weight.detach().numpy().tobytes() for weight in model.parameters())
print(hashlib.sha256(weights).hexdigest(), loss.total.item())
"""


def train(mode: str, mask: str) -> tuple[str, float]:
    """The hash of the weights after a few steps in a process of their own, and the last loss."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "tests" / "support")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", PROGRAM, mode, mask]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    weights, loss = finished.stdout.split()
    return weights, float(loss)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="compiling needs a C++ compiler")
@pytest.mark.parametrize("mask", ["unmasked", "masked", "guessing"])
def test_compiled_is_deterministic_and_computes_the_same(mask: str) -> None:
    """With a mask of documents, and with masks that guess, which come half-way."""
    (first, loss), (second, _) = train("compiled", mask), train("compiled", mask)
    assert first == second
    assert loss == pytest.approx(train("eager", mask)[1], rel=1e-5)
