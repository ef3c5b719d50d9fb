"""What the trackers are told of a training: its parameters, machine, data, and the code that it belongs to."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcore.params import flatten


@dataclass(frozen=True)
class TrackedRun:
    """What the tracker is told of a training besides its metrics.

    `folder` is runs/KEY and holds metrics.jsonl and the checkpoints; `params` are nested by section; `hardware` may
    differ when the run goes on elsewhere; `datasets` are fingerprints by name, nested; `artifact` is the folder of the
    model, uploaded after a good end.
    """

    folder: Path
    params: Mapping[str, Any]
    hardware: Mapping[str, Any]
    datasets: Mapping[str, Any]
    artifact: Path


@dataclass(frozen=True)
class Description:
    """A training in words, as every tracker shows it; kept in runs/KEY, so that it can be told once more later.

    `params` are the run's own by dotted names, `settings` the rest of params.yaml, which a resumed run may change;
    `code` are tags that tie it to git and DVC.
    """

    name: str
    run_key: str
    params: Mapping[str, Any]
    settings: Mapping[str, Any]
    hardware: Mapping[str, Any]
    datasets: Mapping[str, str]
    code: Mapping[str, str]


def describe_run(tracked: TrackedRun, settings: Mapping[str, Any]) -> Description:
    """Put together what is known of a training; `settings` is the whole of params.yaml."""
    rest = {name: section for name, section in settings.items() if name not in {*tracked.params, "profiles"}}
    return Description(
        name=os.environ.get("DVC_EXP_NAME") or tracked.folder.name,
        run_key=tracked.folder.name,
        params=flatten(tracked.params),
        settings=flatten(rest),
        hardware=flatten(tracked.hardware),
        datasets={name: str(digest) for name, digest in flatten(tracked.datasets).items()},
        code=describe_code(),
    )


def describe_code() -> dict[str, str]:
    """Tags that tie a run to git and DVC; those that are unknown are absent."""
    tags = {
        "dvc.exp_name": os.environ.get("DVC_EXP_NAME"),
        "dvc.baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV"),
        "dvc.stage": os.environ.get("DVC_STAGE"),
    }
    if shutil.which("git"):
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if git.returncode == 0:
            tags["git.commit"] = tags["mlflow.source.git.commit"] = git.stdout.strip()
    return {name: value for name, value in tags.items() if value}
