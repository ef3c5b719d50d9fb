"""From a result back to the bytes: the stages, what each read, and what no longer matches."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lmcore.errors import ArtifactError, ParameterError
from lmcore.files import project_root, read_json
from lmcore.lineage.dvc_files import Project
from lmcore.lineage.find_state import find_state
from lmcore.lineage.foreign_models import describe_copy
from lmcore.lineage.history import Commit, History
from lmcore.lineage.lock import LOCK, PIPELINE, Pipeline, read_pipeline, read_unrecorded
from lmcore.lineage.provenance import (
    RAW,
    Records,
    find_changed_origin,
    find_changed_sources,
    list_origins,
    read_sample,
)
from lmcore.lineage.remedy import Mismatch
from lmcore.lineage.runs import check_identity, compare_tracked, describe_run, read_identity
from lmcore.lineage.steps import State, Step
from lmcore.lineage.target import Target, find_target
from lmcore.params import flatten
from lmcore.tracking.store import find_run, read_runs

NOTHING = Pipeline({}, {}, {})  # where no dvc.lock says what made what


@dataclass(frozen=True)
class Trace:
    """A result's way: `steps` from it to the bytes, each before those that it was made from.

    `commit` is None for the working tree's state. `subject` is what is known of the very thing asked for (a sample, a
    file of the corpus, metrics); `notes` say what could not be known.
    """

    asked: str
    kind: str
    quick: bool
    commit: Commit | None
    subject: Mapping[str, Any]
    steps: list[Step]
    records: Mapping[str, Any]
    run: Mapping[str, Any] | None
    notes: list[str]
    mismatches: list[Mismatch]


@dataclass
class Findings:
    """What comes up on the way."""

    subject: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    mismatches: list[Mismatch] = field(default_factory=list)


def trace(name: str, *, quick: bool = False) -> Trace:
    """The lineage of `name`: see `find_target`. `quick` compares the sizes of what stages made instead of their bytes.

    Raises LmcoreError for a name that nothing has, and where nothing is recorded.
    """
    root = find_root(name)
    history = History(root)
    present = read_pipeline(root) if (root / LOCK).exists() else None
    target = find_target(name, root, present, history)
    if target.kind == "copy":
        copy = describe_copy(Path(target.path), root)
        run = {"key": copy.key, "path": None} if copy.key else None
        subject = {"path": target.path}
        return Trace(name, "copy", quick, None, subject, [], copy.records, run, copy.notes, copy.mismatches)
    findings = Findings()
    state, stages = _open_state(target, Project(root), history, present or read_unrecorded(root), findings, quick=quick)
    steps = _walk(state, stages, findings)
    records = _open_records(state, {step.stage for step in steps})
    _compare_records(state, records, steps, findings)
    if target.kind == "artefact":
        _describe_artefact(target, state, records, findings)
    elif target.kind == "run":
        _compare_run(target, records, root, findings)
    elif target.commit is not None:
        findings.subject |= {"commit": target.commit.id, "experiment": target.commit.experiment}
    told = describe_records(records, {step.stage for step in steps})
    notes, mismatches = findings.notes, findings.mismatches
    return Trace(name, target.kind, quick, state.commit, findings.subject, steps, told, findings.run, notes, mismatches)


def find_root(name: str) -> Path:
    """The project that the path `name` lies in, or else the current one."""
    for place in (Path(name).absolute(), Path(name.rpartition(":")[0]).absolute()):
        if place.exists():
            for folder in (place, *place.parents):
                if (folder / PIPELINE).exists():
                    return folder
    return project_root()


def _open_state(
    target: Target, project: Project, history: History, present: Pipeline, findings: Findings, *, quick: bool
) -> tuple[State, tuple[str, ...]]:
    """The state of the project that the target belongs to, and the stages to begin from; none if that is not known."""
    pipeline, commit, stages = present, target.commit, target.stages
    if commit is not None:
        pipeline = history.read_pipeline(commit)
        stages = tuple(pipeline.stages)
    elif target.kind == "run" and target.key is None:
        findings.notes.append(
            "this run has no key of lmcore's: another program made it, and nothing leads further back"
        )
    elif target.kind == "run" and target.key is not None:
        found = find_state(target.key, target.tracked, project, history, present)
        pipeline, commit = found.pipeline or NOTHING, found.commit
        stages = ("train",) if found.pipeline else ()
        findings.notes += [found.note] if found.note else []
        findings.mismatches += [found.mismatch] if found.mismatch else []
    return State(project, history, pipeline, present, commit, quick), stages


def _walk(state: State, names: tuple[str, ...], findings: Findings) -> list[Step]:
    stages = state.pipeline.walk_back(*names)
    state.read(stages)
    steps = []
    for stage in stages:
        step = state.build_step(stage)
        steps.append(step)
        findings.mismatches += state.find_mismatches(stage, step)
    if not state.history.exists:
        findings.notes.append("there is no git repository here, or no commit: who recorded what is not known")
        findings.mismatches = [mismatch for mismatch in findings.mismatches if mismatch.kind != "uncommitted"]
    return steps


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

    return Records(find)


def _compare_records(state: State, records: Records, steps: list[Step], findings: Findings) -> None:
    contradictions = records.find_contradictions(state.pipeline)
    findings.mismatches += [replace(found, remedy=state.again(found.remedy)) for found in contradictions]
    if state.commit is None and steps:
        stages = {step.stage for step in steps}
        changed = find_changed_sources(state.project.root)
        findings.mismatches += [mismatch for mismatch in changed if mismatch.stage in stages]
        if records.model is not None:
            findings.mismatches += find_changed_origin(state.pipeline, records.model)
    if records.model is not None and (key := records.model.get("run_key")):
        findings.run = describe_run(state.project.root, str(key))
        if findings.run["path"]:
            findings.mismatches += check_identity(state.project.root, str(key))


def describe_records(records: Records, stages: set[str]) -> dict[str, Any]:
    """Corpus, tokenizer, tokens, model and its origins in short, of what there is."""
    told: dict[str, Any] = {}
    if records.corpus is not None and "download" in stages:
        told["corpus"] = {"sources": records.corpus.get("sources", []), "files": records.corpus.get("files", [])}
    if records.tokenizer is not None:
        told["tokenizer"] = {"sha256": records.tokenizer}
    if records.tokens is not None:
        splits = records.tokens.get("splits", {})
        told["tokens"] = {
            "tokenizer": records.tokens.get("tokenizer"),
            "fingerprints": records.token_fingerprints,
            "counts": {split: entry.get("tokens") for split, entry in splits.items()},
            "tokenized": records.tokens.get("tokenized"),
        }
    if records.model is not None:
        lineage = records.model
        told["model"] = {name: value for name, value in lineage.items() if name not in ("params", "init_from")}
        told["origins"] = list_origins(lineage)
    return told


def _describe_artefact(target: Target, state: State, records: Records, findings: Findings) -> None:
    """What is known of the very file: a sample, a file of the corpus, metrics. Raises ParameterError for no part."""
    place = state.project.root / target.path
    findings.subject["path"] = target.path
    if target.path.endswith(".jsonl") and target.part is not None:
        if not target.part.isdigit():
            raise ParameterError(f"{target.path}:{target.part}: name a line by its number, as {target.path}:1")
        if not place.is_file():
            raise ArtifactError(f"{target.path} is not there: dvc checkout {target.path}, or dvc repro")
        stage = state.pipeline.stages[target.stages[0]]
        sample, mismatches = read_sample(place, int(target.part), stage.params)
        findings.subject["sample"] = sample
        findings.mismatches += mismatches
    elif place.suffix == ".json" and target.path.startswith("reports/metrics/") and place.is_file():
        values = flatten(read_json(place, "dvc repro"))
        if target.part is not None:
            if target.part not in values:
                raise ParameterError(f"{target.path} has no {target.part}; it has {', '.join(values)}")
            values = {target.part: values[target.part]}
        findings.subject["metrics"] = values
    elif target.part is not None:
        raise ParameterError(f"{target.path}:{target.part}: only samples and metrics have parts")
    elif target.path.startswith(f"{RAW}/files/") and records.corpus is not None:
        name = target.path.removeprefix(f"{RAW}/files/")
        listed = [entry for entry in records.corpus.get("files", []) if entry.get("path") == name]
        if listed:
            findings.subject["file"] = listed[0]


def _compare_run(target: Target, records: Records, root: Path, findings: Findings) -> None:
    """What MLflow says of the run beside what the model says, or runs/KEY where the model is gone."""
    key = target.key
    findings.run = findings.run or (describe_run(root, key) if key else {"key": None, "path": None})
    tracked = target.tracked or find_run(str(findings.run.get("mlflow_run") or key or ""), read_runs())
    if tracked is None:
        findings.notes.append("MLflow has no run of this key")
        return
    findings.run["mlflow"] = {
        "run_id": tracked.run_id,
        "name": tracked.name,
        "status": tracked.status,
        "git_commit": tracked.tags.get("git.commit"),
        "dvc_experiment": tracked.tags.get("dvc.exp_name"),
        "datasets": dict(tracked.datasets),
    }
    lineage = records.model
    if lineage is None and key is not None and (identity := read_identity(root, key)) is not None:
        fingerprints = {name: value for name, value in identity.items() if name not in ("model", "train")}
        params = {name: identity[name] for name in ("model", "train") if name in identity}
        lineage = {"run_key": key, "params": params, **fingerprints}
    if lineage is not None:
        findings.mismatches += compare_tracked(tracked, lineage)
