"""What a finished run leaves behind: the model folder, the metrics, the curve and its picture."""

import csv
import io
from pathlib import Path
from typing import Any

from lmcore.files import write_folder, write_json, write_text
from lmcore.model.gpt import GPT
from lmcore.model.save_load import save_model
from lmcore.plots import draw_training
from lmcore.tokenizer.base import Tokenizer
from lmcore.train.run_state import Record, Run

MODEL_FOLDER = Path("models/gpt")
METRICS_FILE = Path("reports/metrics/train.json")
CURVE_FILE = Path("reports/plots/training.csv")
PICTURE_FILE = Path("reports/plots/training.svg")
CURVE_COLUMNS = ("step", "tokens", "train_loss", "val_loss", "learning_rate", "gradient_norm")
MASKS_COLUMNS = ("diffusion_loss", "val_diffusion_loss")  # of models with masks
CURVE_ROWS = 2000  # `dvc plots` inlines every row into its page


def write_outputs(
    run: Run,
    model: GPT,
    science: dict[str, Any],
    fingerprints: dict[str, Any],
    tokenizer: Tokenizer,
    figures: dict[str, int],
) -> None:
    """The model folder, metrics and curve: a pure function of the weights, the records and the fingerprints.

    `figures` are metrics of the text beside those of the log.
    """
    metrics = {**summarise(run.records), **figures}
    with write_folder(MODEL_FOLDER) as folder:
        lineage = {"run_key": run.key, "params": science, **fingerprints, "metrics": metrics}
        save_model(folder, model, lineage)
        tokenizer.save(folder)
    write_json(METRICS_FILE, metrics)
    rows = thin(run.records, CURVE_ROWS)
    write_text(CURVE_FILE, format_curve(rows))
    draw_training(rows, PICTURE_FILE)


def summarise(records: list[Record]) -> dict[str, Any]:
    """Steps, tokens and the last losses, rounded to what a reader can use."""
    last = records[-1]
    names = ["train_loss", "val_loss", "bits_per_byte", *(key for key in last if key.startswith("val_diffusion_loss"))]
    losses = {key: round(last[key], 6) for key in names}
    return {"steps": last["step"], "tokens": last["tokens"], **losses}


def format_curve(rows: list[Record]) -> str:
    """The records as CSV; a value that was not measured at a step is left empty."""
    text = io.StringIO()
    further = MASKS_COLUMNS if any(MASKS_COLUMNS[0] in row for row in rows) else ()
    writer = csv.DictWriter(text, (*CURVE_COLUMNS, *further), extrasaction="ignore", lineterminator="\n")
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
