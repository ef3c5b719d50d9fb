"""What later stages measure of a model, added to its training's run."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmcore.files import read_json
from lmcore.params import flatten, read_params
from lmcore.runtime.progress import warn
from lmcore.tracking.session import read_tracking
from lmcore.tracking.store import RUN_KEY_TAG, connect, explain, has_store, legal_name, read_pages, shown_uri


def log_results(model: Path, stage: str, metrics: Mapping[str, Any]) -> None:
    """Add what a later stage measured of the model in this folder to its training's run, as `STAGE.NAME`.

    A model that was trained elsewhere has no run here, and gets none; a store that does not answer costs one line.
    """
    key = read_json(model / "lineage.json", "run dvc repro train").get("run_key")
    if key is None or not has_store():
        return
    try:
        if "mlflow" not in read_tracking(read_params()).backends:
            return
        client = connect()  # which also sees to it that importing mlflow starts no telemetry
        from mlflow.entities import Metric

        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        query, order = f"tags.`{RUN_KEY_TAG}` = '{key}'", ["start_time DESC"]
        run = next(read_pages(client.search_runs, experiments, query, order_by=order), None)
        if run is not None:
            now = time.time_ns() // 1_000_000
            points = [
                Metric(legal_name(name), value, now, 0)
                for name, value in flatten({stage: metrics}).items()
                if isinstance(value, int | float)  # not a checksum
            ]
            client.log_batch(run.info.run_id, metrics=points)
    except Exception as error:  # the tracker must never end a stage
        warn(f"MLflow at {shown_uri()} lacks what {stage} measured ({explain(error)}): dvc repro -f -s {stage}")
