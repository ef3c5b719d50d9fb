"""Trainings of a tiny model in this process, in a folder of their own, again and again if need be."""

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny import TINY_MODEL, TINY_TRAIN

from lmcore.evaluate.loss import Loss, measure_loss
from lmcore.files import write_text
from lmcore.hardware.distributed import World
from lmcore.hardware.resolve import Hardware
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.tokens.dataset import TokenDataset
from lmcore.tracking.description import TrackedRun
from lmcore.train.params import TrainParams
from lmcore.train.plan import RunContext
from lmcore.train.run_state import Record
from lmcore.train.schedule import plan_schedule
from lmcore.train.trainer import open_batches, run_training


def on_cpu(micro_batch_size: int = 4) -> Hardware:
    return Hardware("cpu", "cpu", "fp32", micro_batch_size, compile=False, compile_reason="a test", threads=1)


@contextmanager
def untracked(_: TrackedRun) -> Iterator[None]:
    yield


def write_rows(rows: Sequence[Record], out: Path) -> None:
    write_text(out, json.dumps(list(rows)))  # also what is not finite


class KilledError(Exception):
    """Stands for a death between two lines of the loop."""


class Training:
    """One project folder in which a training is run, again and again if need be."""

    def __init__(self, folder: Path, dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.dataset, self.monkeypatch = folder, dataset, monkeypatch
        self.validations = 0
        folder.mkdir(exist_ok=True)
        # In place of the picture what it is drawn from: drawing takes as long as all else, and has its own tests.
        monkeypatch.setattr("lmcore.train.outputs.draw_training", write_rows)

    def run(
        self,
        *,
        params: TrainParams = TINY_TRAIN,
        model_params: ModelParams = TINY_MODEL,
        micro_batch_size: int = 4,
        die_at_validation: int | None = None,
        signal_at_validation: int | None = None,
    ) -> GPT:
        self.monkeypatch.chdir(self.folder)
        self.monkeypatch.setenv("DVC_ROOT", str(self.folder))
        train = self.dataset.train
        model = GPT(model_params, train.vocab_size, params.seed, end_of_text=train.end_of_text)
        batches = open_batches(params, model_params.context_length, self.dataset, World())

        def validate(trained: GPT, *, with_masks: bool) -> Loss:
            self.validations += 1
            if self.validations == signal_at_validation:
                os.kill(os.getpid(), signal.SIGTERM)
            if self.validations == die_at_validation:
                raise KilledError
            shards, lengths = self.dataset.validation, self.dataset.tokenizer.byte_lengths
            return measure_loss(trained, shards, lengths, params.eval_windows, 4, with_masks=with_masks)

        schedule = plan_schedule(params, batches.context_length, batches.tokens)
        context = RunContext(schedule, on_cpu(micro_batch_size), World())
        run_training(model, context, self.dataset, batches, origin={}, validate=validate, track=untracked)
        return model

    @property
    def run_folder(self) -> Path:
        (folder,) = (path for path in (self.folder / "runs").iterdir() if path.is_dir() and "." not in path.name)
        return folder

    def steps(self) -> list[dict[str, float]]:
        lines = (self.run_folder / "metrics.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "machine"} for line in lines]
