"""Branch a longer run off the end of a shorter one's stable phase: up to there both are the same, bit for bit."""

import json
import os
from pathlib import Path
from typing import Any

from lmcore.files import read_json, write_file, write_json
from lmcore.model.params import DiffusionParams
from lmcore.runtime.progress import say
from lmcore.tokens.batches import Batches
from lmcore.train.mask_blocks import find_stable_end
from lmcore.train.params import LENGTHS, TrainParams
from lmcore.train.run_state import PREVIOUS
from lmcore.train.schedule import Schedule, plan_schedule

# What may differ: how long a run is and when it decays say nothing about the steps before.
LENGTH_KEYS = {*LENGTHS, "decay_fraction"}


def branch_off(folder: Path, identity: dict[str, Any], schedule: Schedule, batches: Batches) -> None:
    """Give the new run in `folder` the latest state that another run shares with it, and the log up to there.

    Another run counts if only its length differs and its learning rate was constant too (schedule wsd or constant). The
    state is a hard link; `branch.json` says whose it is.
    """
    if schedule.stable_end is None:
        return
    shared = {
        other.parent: _shared_step(other.parent, identity, schedule, batches)
        for other in sorted(folder.parent.glob("*/identity.json"))
        if other.parent.suffix != PREVIOUS
    }
    nearest = max(shared, key=lambda other: shared[other], default=None)
    if nearest is not None and shared[nearest]:
        _link_state(folder, shared[nearest], nearest)


def _shared_step(other: Path, identity: dict[str, Any], schedule: Schedule, batches: Batches) -> int:
    """The last checkpoint of the run in `other` that a run of `identity` would have had too; 0 without one."""
    theirs = read_json(other / "identity.json", "remove this run's folder")
    if _without_length(theirs) != _without_length(identity):
        return 0
    params = TrainParams.model_validate(theirs["train"])
    planned = plan_schedule(params, batches.context_length, batches.tokens)
    diffusion = DiffusionParams.model_validate(identity["model"]["diffusion"])
    ends = [find_stable_end(each, diffusion) for each in (planned, schedule)]
    last = min(end for end in ends if end is not None)
    if last == planned.steps and (last % params.log_every or last % params.eval_every):
        last -= 1  # a run's last step is logged and validated out of turn, which a longer run's is not
    steps = [int(path.stem.removeprefix("step-")) for path in (other / "checkpoints").glob("step-*.json")]
    return max((step for step in steps if step <= last), default=0)


def _without_length(identity: dict[str, Any]) -> dict[str, Any]:
    train = {key: value for key, value in identity["train"].items() if key not in LENGTH_KEYS}
    return {**identity, "train": train}


def _link_state(folder: Path, step: int, other: Path) -> None:
    content = (other / "metrics.jsonl").read_bytes()  # the other run may be at work: its last line may be half there
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    for stale in (folder / "checkpoints").glob("*"):  # of a start that was killed here, and branched off further on
        stale.unlink()
    with write_file(folder / "metrics.jsonl") as file:  # first: a checkpoint must not know more than the log
        file.writelines(line for line in lines if json.loads(line)["step"] <= step)
    (folder / "checkpoints").mkdir(exist_ok=True)
    for suffix in (".safetensors", ".json"):
        name = f"checkpoints/step-{step:08d}{suffix}"
        try:
            os.link(other / name, folder / name)
        except FileNotFoundError:
            say(f"run {other.name} has just removed its checkpoint of step {step}: not branching off it")
            return
    write_json(folder / "branch.json", {"run_key": other.name, "step": step})
    say(f"run {folder.name}: branching off run {other.name}, which is the same up to step {step}")
