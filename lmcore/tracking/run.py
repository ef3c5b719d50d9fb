"""What a tracker is told of a training, and the commit and the experiment that it belongs to."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrackedRun:
    """What the tracker is told of a training besides its metrics.

    `folder` is runs/KEY and holds metrics.jsonl; `params` are nested by section; `hardware` may differ when the run
    goes on elsewhere; `datasets` are fingerprints by name, nested; `artifact` is uploaded after a good end.
    """

    folder: Path
    params: Mapping[str, Any]
    hardware: Mapping[str, Any]
    datasets: Mapping[str, Any]
    artifact: Path


def describe_code() -> dict[str, str]:
    """Tags that tie a run to git and DVC; those that are unknown are absent."""
    tags = {
        "dvc.exp_name": os.environ.get("DVC_EXP_NAME"),
        "dvc.baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV"),
        "dvc.stage": os.environ.get("DVC_STAGE"),
    }
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if git.returncode == 0:
        tags["git.commit"] = tags["mlflow.source.git.commit"] = git.stdout.strip()
    return {name: value for name, value in tags.items() if value}
