"""Tokens per second of the latest trainings on this machine, as a table that `dvc plots` draws and git ignores."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lmcore.files import write_text
from lmcore.progress import warn
from lmcore.train.run import PREVIOUS

SPEED_FILE = "reports/plots/speed/tokens_per_second.csv"  # in a folder of its own: see dvc.yaml
LATEST_RUNS = 5
ROWS_PER_RUN = 400


def write_speed(run: Path) -> None:
    """The speed by step of the run in this folder, runs/KEY, which ends now, and of the complete ones before it.

    It is made from runs/ alone and lies in the project, so that experiments in a copy of it (`--temp`, the queue) are
    in the same table. No stage lists it as an output: speed does not come out the same again.
    """
    others = [folder for folder in complete_runs(run.parent) if folder != run]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["step", "tokens_per_second", "run"])
    for folder in [*others, run][-LATEST_RUNS:]:
        metrics = folder / "metrics.jsonl"
        try:
            points = [point for point in read_speed(metrics) if point[1]]
        except FileNotFoundError:  # another process trains it again and has just renamed its folder
            continue
        except ValueError as error:
            warn(f"{metrics} is damaged ({error}): {SPEED_FILE} lacks this run")
            continue
        stride = max(1, -(-len(points) // ROWS_PER_RUN))
        table.writerows([step, round(speed), folder.name] for step, speed in points[::-stride][::-1])
    write_text(run.parents[1] / SPEED_FILE, text.getvalue())


def complete_runs(runs: Path) -> list[Path]:
    """The folders of the complete runs, the latest last; of a run that was trained again, only that."""
    found = []
    for summary in runs.glob("*/summary.json"):
        with suppress(FileNotFoundError):  # as above
            found.append((summary.stat().st_mtime, summary.parent))
    return [folder for _, folder in sorted(found) if not folder.name.endswith(PREVIOUS)]


def read_speed(metrics: Path) -> Iterator[tuple[int, float]]:
    """Step and tokens per second of every logged step: the mean since the training began or went on; 0 at first."""
    with metrics.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            yield record["step"], record["machine"].get("tokens_per_second", 0.0)
