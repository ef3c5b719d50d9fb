"""What `lmcore trace` was asked for: a file of the project, a run, an experiment, a commit, a copied model."""

import re
from dataclasses import dataclass
from pathlib import Path

from lmcore.errors import ParameterError, suggest
from lmcore.lineage.dvc_files import list_places
from lmcore.lineage.history import Commit, find_commit
from lmcore.lineage.lock import LOCK, Pipeline
from lmcore.tracking.store import StoredRun, find_run, read_runs

MLFLOW = "mlflow:"  # before a name that something else has too
RUN_PATH = re.compile(r"runs/([0-9a-f]{16})(?:/.*)?")
RUN_KEY = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Target:
    """One of its kinds: `artefact` (`path` and the `stages` that it came from), `run`, `revision`, `copy`.

    `part` is what stood behind a colon: a line of samples.jsonl, or a metric's name.
    """

    kind: str
    path: str = ""
    part: str | None = None
    stages: tuple[str, ...] = ()
    key: str | None = None
    tracked: StoredRun | None = None
    commit: Commit | None = None


def find_target(name: str, root: Path, pipeline: Pipeline) -> Target:
    """What `name` stands for; a path begins at the current folder or at the root.

    Raises ParameterError for a name that nothing has, or a path that no stage made.
    """
    if not name.startswith(MLFLOW):
        whole, _, part = name.rpartition(":")
        for asked, behind in ((name, None), (whole, part)):
            if asked and (target := _find_path(asked, behind, root, pipeline)) is not None:
                return target
        if RUN_KEY.fullmatch(name) and (root / "runs" / name).is_dir():
            return Target("run", key=name)
        if (commit := find_commit(root, name)) is not None:
            return Target("revision", commit=commit)
    if (tracked := find_run(name.removeprefix(MLFLOW), read_runs())) is not None:
        return Target("run", key=tracked.run_key or None, tracked=tracked)
    if name.startswith(MLFLOW):
        raise ParameterError(
            f"{name}: MLflow has no run of this id or name (`lmcore compare mlflow:lmcore` lists them)"
        )
    raise ParameterError(
        f"{name}:{suggest(name, pipeline.outputs)} no file, run, experiment, commit or MLflow run is called so "
        f"(`dvc exp list --all`, `ls runs` and `lmcore compare mlflow:lmcore` name some)"
    )


def _find_path(name: str, part: str | None, root: Path, pipeline: Pipeline) -> Target | None:
    """What the path `name` stands for; None if nothing is there.

    Raises ParameterError for what the pipeline has not made, unless it is a copy of a model from elsewhere.
    """
    for path in list_places(name, root):
        place = root / path
        if match := RUN_PATH.fullmatch(path):
            if place.exists():
                return Target("run", path, key=match[1])
        elif place.exists() or path in pipeline.outputs:
            makers = tuple(  # of a folder above several outputs, those of all of them
                stage.name
                for stage in pipeline.stages.values()
                if any(each.holds(path) or Path(each.path).is_relative_to(path) for each in stage.outputs)
            )
            if makers and (part is None or place.suffix in (".json", ".jsonl")):
                return Target("artefact", path, part, makers)
    existing = [place for place in (Path.cwd() / name, root / name) if place.exists()]
    if part is not None or not existing:
        return None
    place = existing[0]
    folder = place if place.is_dir() else place.parent
    if any((folder / file).exists() for file in ("lineage.json", "config.json")):
        return Target("copy", str(place))
    if not (root / LOCK).exists():
        raise ParameterError(f"{name}: there is no {LOCK}, which records what made what: run dvc repro")
    paths = list_places(name, root)
    stages = pipeline.stages.values()
    if users := [stage for stage in stages if any(entry.holds(path) for entry in stage.inputs for path in paths)]:
        made = users[0].outputs[0].path if users[0].outputs else users[0].name
        names = ", ".join(stage.name for stage in users)
        raise ParameterError(f"{name}: no stage made it, and {names} read it: trace what they made, as {made}")
    made = ", ".join(pipeline.outputs)
    raise ParameterError(f"{name}: no stage made it, and it is no model's folder; the pipeline made {made}")
