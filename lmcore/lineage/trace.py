"""From a result back to the bytes: the stages, what each read, and what no longer matches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lmcore.errors import ArtifactError, ParameterError
from lmcore.files import project_root, read_json, sha256_file
from lmcore.lineage.dvc_files import Project
from lmcore.lineage.history import find_commit, read_committed
from lmcore.lineage.lock import LOCK, PIPELINE, Pipeline, read_pipeline
from lmcore.lineage.provenance import (
    CARD,
    LINEAGE,
    LINEAGE_TYPES,
    MODEL,
    RAW,
    TOKENIZER_FILE,
    Records,
    compute_key,
    find_changed_origin,
    find_changed_sources,
    has_types,
    list_origins,
    read_card,
    read_sample,
)
from lmcore.lineage.remedy import Mismatch
from lmcore.lineage.runs import check_identity, compare_tracked, describe_run, find_state, read_identity, read_key
from lmcore.lineage.steps import State, Trace
from lmcore.lineage.target import Target, find_target
from lmcore.params import flatten
from lmcore.tracking.store import find_run, read_runs

COPY_AGAIN = "copy the folder anew"


def trace(name: str, *, quick: bool = False) -> Trace:
    """The lineage of `name`: see `find_target`. `quick` compares the sizes of what stages made instead of their bytes.

    Raises LmcoreError for a name that nothing has, and where nothing is recorded.
    """
    root = find_root(name)
    present = read_pipeline(root, unrecorded=not (root / LOCK).exists())
    target = find_target(name, root, present)
    found = Trace(name, target.kind, quick)
    if target.kind == "copy":
        describe_copy(found, Path(target.path), root)
        return found
    project = Project(root)
    state, names = _open_state(found, target, project, present)
    found.commit = state.commit
    stages = state.pipeline.walk_back(*names)
    entries = [entry for stage in stages for entry in (*stage.inputs, *stage.outputs)]
    # All files are read side by side; `quick` compares what stages made by its size.
    project.read({e.path: None for e in entries if not (quick and state.pipeline.find_output(e.path))}, "trace")
    for stage in stages:
        step = state.build_step(stage)
        found.steps.append(step)
        found.mismatches += state.find_mismatches(stage, step)
    if find_commit(root, "HEAD") is None:
        found.notes.append("there is no git repository here, or no commit: who recorded what is not known")
        found.mismatches = [mismatch for mismatch in found.mismatches if mismatch.kind != "uncommitted"]
    made = {step.stage for step in found.steps}
    records = _open_records(state, made)
    _compare_records(found, state, records, made)
    if target.kind == "artefact":
        _describe_artefact(found, target, state, records)
    elif target.kind == "run":
        _compare_run(found, target, records, root)
    elif target.commit is not None:
        found.subject |= {"commit": target.commit.id, "experiment": target.commit.experiment}
    found.records = describe_records(records, made)
    return found


def find_root(name: str) -> Path:
    """The project that the path `name` lies in, or else the current one."""
    places = (Path(name).absolute(), Path(name.rpartition(":")[0]).absolute())
    folders = (folder for place in places if place.exists() for folder in (place, *place.parents))
    return next((folder for folder in folders if (folder / PIPELINE).exists()), None) or project_root()


def _open_state(found: Trace, target: Target, project: Project, present: Pipeline) -> tuple[State, tuple[str, ...]]:
    """The state of the project that the target belongs to, and the stages to begin from; none if that is not known."""
    pipeline, commit, stages = present, target.commit, target.stages
    if commit is not None:
        pipeline = read_committed(project.root, commit)
        stages = tuple(pipeline.stages)
    elif target.key is not None:
        origin = find_state(found, target.key, target.tracked, project, present)
        pipeline, commit = origin or (Pipeline({}, {}, {}), None)
        stages = ("train",) if origin else ()
    elif target.kind == "run":
        found.notes.append("this run has no key of lmcore's: another program made it, and nothing leads further back")
    return State(project, pipeline, present, commit, found.quick), stages


def _open_records(state: State, stages: set[str]) -> Records:
    """The records that these stages made: as they lie here, or of a commit, as DVC's cache or the disk has them."""
    project, outputs = state.project, state.pipeline.outputs

    def find(path: str, name: str) -> Path | None:
        found = state.pipeline.find_output(path)
        if found is None or found[0].name not in stages:
            return None
        if state.commit is None:
            place = project.root / path / name
            return place if place.is_file() else None
        return project.find_recorded(outputs[path], name) if path in outputs else None

    return Records(project, find)


def _compare_records(found: Trace, state: State, records: Records, stages: set[str]) -> None:
    contradictions = records.find_contradictions(state.pipeline)
    found.mismatches += [replace(each, remedy=state.again(each.remedy)) for each in contradictions]
    lineage, root = records.model, state.project.root
    if state.commit is None and stages:
        found.mismatches += [mismatch for mismatch in find_changed_sources(root) if mismatch.stage in stages]
    if lineage is not None:
        if state.commit is None:
            found.mismatches += find_changed_origin(state.pipeline, lineage)
        found.run = describe_run(root, lineage["run_key"])
        if found.run["path"]:
            found.mismatches += check_identity(root, lineage["run_key"])


def describe_records(records: Records, stages: set[str]) -> dict[str, Any]:
    """Corpus, tokenizer, tokens, model and its origins in short, of what there is."""
    told: dict[str, Any] = {}
    if records.corpus is not None and "download" in stages:
        told["corpus"] = {name: records.corpus[name] for name in ("sources", "files")}
    if records.tokenizer is not None:
        told["tokenizer"] = {"sha256": records.tokenizer}
    if records.tokens is not None:
        told["tokens"] = {
            "tokenizer": records.tokens.get("tokenizer"),
            "fingerprints": records.token_fingerprints,
            "counts": {split: entry.get("tokens") for split, entry in records.tokens["splits"].items()},
            "tokenized": records.tokens.get("tokenized"),
        }
    if records.model is not None:
        told["model"] = {name: value for name, value in records.model.items() if name not in ("params", "init_from")}
        told["origins"] = list_origins(records.model)
    return told


def _describe_artefact(found: Trace, target: Target, state: State, records: Records) -> None:
    """What is known of the very file: a sample, a file of the corpus, metrics. Raises ParameterError for no part."""
    place, path, part = state.project.root / target.path, target.path, target.part
    found.subject["path"] = path
    if path.endswith(".jsonl") and part is not None:
        if not part.isdigit():
            raise ParameterError(f"{path}:{part}: name a line by its number, as {path}:1")
        if not place.is_file():
            raise ArtifactError(f"{path} is not there: dvc checkout {path}, or dvc repro")
        params = state.pipeline.stages[target.stages[0]].params
        found.subject["sample"], mismatches = read_sample(place, int(part), params)
        found.mismatches += mismatches
    elif place.suffix == ".json" and path.startswith("reports/metrics/") and place.is_file():
        values = flatten(read_json(place, "dvc repro"))
        if part is not None and part not in values:
            raise ParameterError(f"{path} has no {part}; it has {', '.join(values)}")
        found.subject["metrics"] = values if part is None else {part: values[part]}
    elif part is not None:
        raise ParameterError(f"{path}:{part}: only samples and metrics have parts")
    elif path.startswith(f"{RAW}/files/") and records.corpus is not None:
        name = path.removeprefix(f"{RAW}/files/")
        if listed := [entry for entry in records.corpus["files"] if entry.get("path") == name]:
            found.subject["file"] = listed[0]


def _compare_run(found: Trace, target: Target, records: Records, root: Path) -> None:
    """What MLflow says of the run beside what the model says, or runs/KEY where the model is gone."""
    key = target.key
    found.run = found.run or (describe_run(root, key) if key else {"key": None, "path": None})
    tracked = target.tracked or find_run(str(found.run.get("mlflow_run") or key or ""), read_runs())
    if tracked is None:
        found.notes.append("MLflow has no run of this key")
        return
    found.run["mlflow"] = {
        "run_id": tracked.run_id,
        "name": tracked.name,
        "status": tracked.status,
        "git_commit": tracked.tags.get("git.commit"),
        "dvc_experiment": tracked.tags.get("dvc.exp_name"),
        "datasets": dict(tracked.datasets),
    }
    lineage = records.model
    if lineage is None and key is not None and (identity := read_identity(root, key)) is not None:
        params = {name: identity.pop(name) for name in ("model", "train") if name in identity}
        lineage = {"run_key": key, "params": params, **identity}
    if lineage is not None:
        found.mismatches += compare_tracked(tracked, lineage)


def describe_copy(found: Trace, place: Path, root: Path) -> None:
    """Enter in `found` what the folder at `place`, or around it, says; the project in `root` may know its run.

    Raises ArtifactError for a lineage.json that is none.
    """
    folder = place if place.is_dir() else place.parent
    found.subject["path"] = str(place)
    key = None
    if (folder / LINEAGE).exists():
        key = _read_lineage(found, folder)
    elif (folder / CARD).exists() and (card := read_card(folder / CARD)):
        found.records, key = {"card": card}, card.get("run")
        found.notes.append("whether these weights are those that its card tells of is not known")
    else:
        found.notes.append(f"it has neither {LINEAGE} nor a card of lmcore's: nothing leads further back")
    found.notes.append(f"no {LOCK} near it records this folder: traced as far as its own files say")
    if not key:
        return
    found.run = {"key": key, "path": None}
    if (root / LOCK).exists() and read_key(root / MODEL / LINEAGE) == key:
        found.notes.append(f"{MODEL} of this project is of the same run: lmcore trace {MODEL} goes on from there")
    elif (root / "runs" / key).is_dir():
        found.notes.append(f"this project has its run: lmcore trace {key} goes on from there")


def _read_lineage(found: Trace, folder: Path) -> str:
    """Enter what a lineage.json says, and where it contradicts itself or its tokenizer; return the key of the run."""
    lineage = read_json(folder / LINEAGE, COPY_AGAIN)
    if not has_types(lineage, LINEAGE_TYPES):
        raise ArtifactError(f"{folder / LINEAGE} does not say what made a model: {COPY_AGAIN}")
    key = str(lineage["run_key"])
    model = {name: value for name, value in lineage.items() if name != "init_from"}
    found.records = {"model": model, "origins": list_origins(lineage)}
    if (computed := compute_key(lineage)) != key:
        text = f"{LINEAGE} names run {key}, what it describes is {computed}"
        found.mismatches.append(Mismatch("lineage", text, COPY_AGAIN, path=LINEAGE))
    tokenizer = folder / TOKENIZER_FILE
    if tokenizer.exists() and (made_by := sha256_file(tokenizer)) != lineage["tokenizer"]:
        text = f"{TOKENIZER_FILE} is {made_by[:12]}, the model was trained with {lineage['tokenizer'][:12]}"
        found.mismatches.append(Mismatch("tokenizer", text, COPY_AGAIN, path=TOKENIZER_FILE))
    return key
