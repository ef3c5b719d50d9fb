"""Weights & Biases as a tracker, online or offline, as its own WANDB_ variables say."""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmcore.errors import LmcoreError
from lmcore.files import write_json
from lmcore.tracking.description import Description
from lmcore.tracking.shipper import Backend
from lmcore.tracking.spool import Row, read_state
from lmcore.tracking.store import SYSTEM_PREFIX

if TYPE_CHECKING:
    from wandb import Run

STATE = "wandb.json"
CONNECT_SECONDS, FINISH_SECONDS = 20.0, 40.0  # then the server counts as away


class WandbBackend(Backend):
    """One run, named by a random id that is kept in wandb.json; W&B's steps are the training's.

    Online, the server says which step it has reached, and the rest is sent from the spool. Offline, the position that
    was reached is kept beside the id; a kill between sending and noting it, within milliseconds, leaves one batch
    twice among the files that `wandb sync` uploads. System metrics come from W&B's own sampler, which has a page of its
    own for them. Weights are large and stay here: MLflow and DVC have them.
    """

    label = "W&B"

    def __init__(self, folder: Path, description: Description, project: str, system_seconds: float | None) -> None:
        self.folder, self.description, self.project = folder, description, project
        self.system_seconds = system_seconds
        self.run: Run  # from the first `open` on
        self.first_step = 0

    def open(self) -> Mapping[str, int]:
        """The run noted before, or a new one."""
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        state = read_state(self.folder / STATE)
        if not hasattr(self, "run"):
            if wandb.setup().settings.mode in ("online", "shared") and not wandb.api.api_key:
                # Otherwise it would ask for one, on the terminal that shows the training.
                raise LmcoreError("no API key: run `wandb login`, or set WANDB_MODE=offline")
            about = self.description
            self.run = wandb.init(
                project=self.project,
                id=state.get("run_id") or secrets.token_hex(8),
                name=about.name,
                resume="allow",
                reinit="create_new",
                dir=str(self.folder),
                config={
                    **about.params,
                    **about.settings,
                    **about.code,
                    "run_key": about.run_key,
                    "hardware": about.hardware,
                    "datasets": about.datasets,
                },
                settings=wandb.Settings(
                    console="off",  # training's output is not W&B's to keep
                    silent=True,
                    disable_git=True,  # the commit is in the description; a diff of the checkout is nobody's business
                    init_timeout=CONNECT_SECONDS,
                    finish_timeout=FINISH_SECONDS,
                    finish_timeout_raises=True,
                    x_disable_stats=self.system_seconds is None,
                    x_stats_sampling_interval=self.system_seconds or 10.0,
                ),
            )
        if self.run.offline:
            positions: dict[str, int] = state.get("positions", {})
        else:
            self.first_step, positions = self.run.starting_step, {}
        self.note(positions)
        return positions

    def send(self, rows: Sequence[Row]) -> None:
        """Hand the rows to W&B's own process, which uploads them or writes them to its files."""
        for row in rows:
            if row.step >= self.first_step and not any(name.startswith(SYSTEM_PREFIX) for name in row.values):
                self.run.log({**row.values, "_timestamp": row.time / 1000}, step=row.step)

    def note(self, positions: Mapping[str, int]) -> None:
        """Keep them beside the run's id."""
        write_json(self.folder / STATE, {"run_id": self.run.id, "positions": positions})

    def close(self, status: str) -> None:
        """Wait until W&B has everything; raises TimeoutError if its server is away."""
        self.run.finish(exit_code=int(status != "FINISHED"))
