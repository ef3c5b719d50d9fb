"""What later stages measure of a model, added to its training's run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmcore.files import read_json
from lmcore.progress import warn
from lmcore.tracking.store import EXPERIMENT, RUN_KEY_TAG, connect, first_line, flatten, tracking_uri


def log_results(model: Path, stage: str, metrics: Mapping[str, Any]) -> None:
    """Add what a later stage measured of the model in this folder to its training's run, as `STAGE.NAME`.

    A model that was trained elsewhere has no run here, and gets none; a store that does not answer costs one line.
    """
    key = read_json(model / "lineage.json", "run dvc repro train").get("run_key")
    if key is None:
        return
    try:
        client = connect()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None
        mine = f"tags.`{RUN_KEY_TAG}` = '{key}'"
        for run in client.search_runs([experiment.experiment_id], mine, max_results=1, order_by=["start_time DESC"]):
            for name, value in flatten({stage: metrics}).items():
                if isinstance(value, int | float):  # not a checksum
                    client.log_metric(run.info.run_id, name, value)
    except Exception as error:  # the tracker must never end a stage
        warn(f"MLflow at {tracking_uri()} lacks what {stage} measured ({first_line(error)}): dvc repro -f -s {stage}")
