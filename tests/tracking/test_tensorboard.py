"""TensorBoard's files, read back with TensorBoard's own reader."""

from pathlib import Path

import pytest
from tracked import BEGIN, SETTINGS, log, make_params, make_run

from lmcore.tracking.session import track_run

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

TENSORBOARD = make_params("tensorboard", seconds=1.0)

pytestmark = pytest.mark.filterwarnings("ignore")


def read(folder: Path) -> object:
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    return events.Reload()


def test_a_resumed_training_doubles_nothing(project: Path) -> None:
    run = make_run(project)
    with pytest.raises(SystemExit), track_run(run, SETTINGS, TENSORBOARD):
        log(run, 1, 2)
        raise SystemExit(143)
    # A kill in the middle of a write: the last record of the file is torn, and its point comes again.
    (file,) = (run.folder / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    with track_run(run, SETTINGS, TENSORBOARD):
        log(run, 3)
    with track_run(run, SETTINGS, TENSORBOARD):
        pass
    events = read(run.folder / "tensorboard")
    points = events.Scalars("train_loss")
    assert [(point.step, round(1000 * point.wall_time) - BEGIN) for point in points] == [(1, 1), (2, 2), (3, 3)]
    assert [point.value for point in points] == pytest.approx([1, 1 / 2, 1 / 3])
    assert [point.step for point in events.Scalars("speed")] == [1, 2, 3]
    description = events.Tensors("description/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| train.learning_rate | 0.001 |" in description
    assert not (project / "mlflow.db").exists()
