"""TensorBoard as a tracker: event files in runs/KEY/tensorboard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmcore.tracking.description import Description
from lmcore.tracking.shipper import Backend
from lmcore.tracking.spool import Row

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardBackend(Backend):
    """One folder of event files; every training that goes on with the run adds a file.

    What the files hold decides what is written, so that no kill can double or lose a point.
    """

    def __init__(self, folder: Path, description: Description) -> None:
        self.folder, self.description = folder / "tensorboard", description
        self.label = f"TensorBoard in {self.folder}"
        self.writer: SummaryWriter  # from the first `open` on
        self.last_steps: dict[str, int] = {}

    def open(self) -> Mapping[str, int]:
        """Look up which step each metric has reached; the spools are read from their beginning."""
        from tensorboard.backend.event_processing import event_accumulator as reader  # type: ignore[import-untyped]
        from torch.utils.tensorboard import SummaryWriter

        if hasattr(self, "writer"):
            self.writer.close()
        self.last_steps = {}
        if self.folder.is_dir():  # a record torn by a kill does not count
            size = {"scalars": 1, "tensors": 1}
            events = reader.EventAccumulator(str(self.folder), size_guidance=size, purge_orphaned_data=False)
            events.Reload()
            self.last_steps = {name: events.Scalars(name)[-1].step for name in events.Tags()["scalars"]}
        self.writer = SummaryWriter(str(self.folder))
        if not self.last_steps:
            rows = {**self.description.params, **self.description.hardware, **self.description.code}
            table = "".join(f"| {name} | {value} |\n" for name, value in rows.items())
            self.writer.add_text("description", f"| name | value |\n|---|---|\n{table}", 0)
        return {}

    def send(self, rows: Sequence[Row]) -> None:
        """Write the points that are not there yet."""
        for row in rows:
            for name, value in row.values.items():
                if row.step > self.last_steps.get(name, -1):
                    self.writer.add_scalar(name, value, row.step, walltime=row.time / 1000)
        self.writer.flush()

    def close(self, status: str) -> None:  # noqa: ARG002
        """Close the file; TensorBoard knows no status."""
        self.writer.close()
