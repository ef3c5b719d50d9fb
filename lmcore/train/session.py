"""One training run from start to outputs: build, restore, train, write."""

import csv
import io
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from lmcore.files import project_root, write_folder, write_json, write_text
from lmcore.hardware import Hardware, peak_memory_bytes
from lmcore.model.architecture import explain_misfit, hugging_face_architecture
from lmcore.model.folder import save_model
from lmcore.model.gpt import GPT
from lmcore.plots import draw_training
from lmcore.progress import TrainingProgress, say, warn
from lmcore.tokens.batches import Batches
from lmcore.tokens.dataset import TokenDataset
from lmcore.tracking import TrackedRun
from lmcore.train.checkpoint import Checkpoints
from lmcore.train.interrupt import catch_signals, follow_parent
from lmcore.train.loop import Forward, Trainee, Validate, train
from lmcore.train.optimizer import build_optimizer
from lmcore.train.run import Record, Run, open_run
from lmcore.train.settings import TrainParams

MODEL_FOLDER = Path("models/gpt")
METRICS_FILE = Path("reports/metrics/train.json")
CURVE_FILE = Path("reports/plots/training.csv")
PICTURE_FILE = Path("reports/plots/training.svg")
CURVE_COLUMNS = ("step", "tokens", "train_loss", "val_loss", "learning_rate", "gradient_norm")
CURVE_ROWS = 2000  # `dvc plots` inlines every row into its page

Track = Callable[[TrackedRun], AbstractContextManager[None]]


def run_training(
    model: GPT,
    params: TrainParams,
    hardware: Hardware,
    dataset: TokenDataset,
    batches: Batches,
    *,
    validate: Validate,
    track: Track,
) -> None:
    """Train, or go on training, and write models/gpt, the metrics and the curve.

    The run is named by the parameters and by the data's fingerprints, not by the machine, so that it may go on
    elsewhere. Nothing is written to models/ and reports/ before the run is at its end; until then, and after, its
    state lies in runs/KEY.
    """
    started = time.monotonic()
    forward = place_model(model, hardware)
    optimizer = build_optimizer(model, params)
    science = {"model": model.params.model_dump(), "train": params.model_dump()}
    say(describe_training(model, params, hardware, dataset, batches))
    if hugging_face_architecture(model.params) is None:
        warn(f"the export stage will refuse this model: {explain_misfit(model.params)}")
    follow_parent()
    with open_run(project_root() / "runs", {**science, **dataset.fingerprints}) as run, catch_signals() as interrupt:
        checkpoints = Checkpoints(run.folder / "checkpoints", params.keep_checkpoints)
        step = checkpoints.restore(model, optimizer)
        say(f"run {run.key}: " + (f"going on from step {step}" if step else "starting"))
        with track(TrackedRun(run.folder, science, hardware.describe(), dataset.fingerprints, MODEL_FOLDER)):
            with TrainingProgress(step, params.max_steps, batches.tokens_per_step) as progress:
                train(
                    Trainee(model, forward, optimizer),
                    batches,
                    params,
                    hardware,
                    step=step,
                    validate=validate,
                    run=run,
                    checkpoints=checkpoints,
                    progress=progress,
                    interrupt=interrupt,
                )
            write_outputs(run, model, science, dataset)
        run.complete(
            {
                "seconds": round(time.monotonic() - started, 3),
                "tokens_per_second": round(progress.tokens_per_second, 1),
                "peak_memory_bytes": peak_memory_bytes(),
                "hardware": hardware.describe(),
            }
        )


def describe_training(
    model: GPT, params: TrainParams, hardware: Hardware, dataset: TokenDataset, batches: Batches
) -> str:
    """What follows from the parameters, the data and the machine, each with its derivation."""
    tokens = params.max_steps * batches.tokens_per_step
    return "\n".join(
        [
            f"model: {model.count_parameters():,} parameters, vocabulary {model.vocab_size:,} (the tokenizer's)",
            f"tokens: {params.max_steps:,} steps x {params.batch_size} sequences x {batches.context_length} tokens "
            f"= {tokens:,}, or {tokens / dataset.train.tokens:.2f} epochs of {dataset.train.tokens:,}",
            f"machine: profile {hardware.profile}, {hardware.device}, {hardware.precision}, "
            f"{hardware.threads} threads, {hardware.micro_batch_size} of {params.batch_size} sequences at once, "
            f"{'compiled' if hardware.compile else 'not compiled'} ({hardware.compile_reason})",
        ]
    )


def place_model(model: GPT, hardware: Hardware) -> Forward:
    """Put the model on its device and return its forward pass as training calls it."""
    if hardware.device == "cpu":
        # A compiled step adds the embedding's gradient atomically: three processes gave three different weights.
        # With this they are equal, at no measurable cost.
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if hardware.device == "cuda":
        torch.set_float32_matmul_precision("high")
    model.to(hardware.device).train()
    return torch.compile(model) if hardware.compile else model


def write_outputs(run: Run, model: GPT, science: dict[str, Any], dataset: TokenDataset) -> None:
    """The model folder, metrics and curve: a pure function of the weights, the records and the fingerprints."""
    metrics = summarise(run.records)
    with write_folder(MODEL_FOLDER) as folder:
        lineage = {"run_key": run.key, "params": science, **dataset.fingerprints, "metrics": metrics}
        save_model(folder, model, lineage)
        dataset.tokenizer.save(folder)
    write_json(METRICS_FILE, metrics)
    rows = thin(run.records, CURVE_ROWS)
    write_text(CURVE_FILE, format_curve(rows))
    draw_training(rows, PICTURE_FILE)


def summarise(records: list[Record]) -> dict[str, Any]:
    """Steps, tokens and the last losses, rounded to what a reader can use."""
    last = records[-1]
    losses = {key: round(last[key], 6) for key in ("train_loss", "val_loss", "bits_per_byte")}
    return {"steps": last["step"], "tokens": last["tokens"], **losses}


def format_curve(rows: list[Record]) -> str:
    """The records as CSV; a value that was not measured at a step is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CURVE_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    )
    return text.getvalue()


def thin(records: list[Record], limit: int) -> list[Record]:
    """At most about `limit` records, half of them validations, evenly spread; the last one is always there."""
    validations = [record for record in records if "val_loss" in record]
    others = [record for record in records if "val_loss" not in record]
    kept = [*spread(validations, limit // 2), *spread(others, limit // 2)]
    return sorted(kept, key=lambda record: record["step"])


def spread(records: list[Record], limit: int) -> list[Record]:
    """At most `limit` of the records, every n-th counted from the last. With limit 2, 1 2 3 4 -> 2 4."""
    stride = max(1, -(-len(records) // limit))
    return records[::-stride][::-1]
