"""A training as its trackers see it: a folder with a log, checkpoints and a model."""

import json
from pathlib import Path

from lmcore.tracking.description import TrackedRun
from lmcore.tracking.params import BackendName, TrackingParams

SETTINGS = {
    "train": {"seed": 1},
    "encode": {"shard_tokens": 9},
    "profiles": {"cpu": {}},
    "sample": {"temperature": 0.5},
}
BEGIN = 1_700_000_000_000  # milliseconds


def make_params(*backends: BackendName, seconds: float | None = None) -> TrackingParams:
    return TrackingParams(backends=list(backends or ["mlflow"]), experiment="lmcore", system_metrics_seconds=seconds)


def make_run(project: Path, **hardware: object) -> TrackedRun:
    """The run in the project's one folder of a run; its name is the run's key."""
    (folder,) = (project / "runs").iterdir()
    return TrackedRun(
        folder=folder,
        params={"train": {"seed": 1, "learning_rate": 0.001, "mixture": {"web+books": 0.5}}, "model": {"n_layers": 2}},
        hardware={"device": "cpu", **hardware},
        datasets={"tokens": {"train": "ab" * 32}, "tokenizer": "cd" * 32},
        artifact=project / "models" / "gpt",
    )


def log(run: TrackedRun, *steps: int) -> None:
    """Append to the log as training does; the time follows from the step."""
    with (run.folder / "metrics.jsonl").open("a") as file:
        for step in steps:
            record = {
                "step": step,
                "train_loss": 1.0 / step,
                "val_loss": 2.0 / step,
                "machine": {"time": BEGIN + step, "speed": 9.5},
            }
            file.write(json.dumps(record) + "\n")


def seal(run: TrackedRun, step: int) -> Path:
    """The second file of a checkpoint."""
    path = run.folder / "checkpoints" / f"step-{step:08d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"format": 1, "step": step, "sha256": "ef" * 32, "bytes": 10, "val_loss": 2.0 / step}))
    return path
