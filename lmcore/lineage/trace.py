"""From a result back to the bytes: the stages, what each read, and what no longer matches."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmcore.compare.experiments import describe_params
from lmcore.errors import ArtifactError, LmcoreError, ParameterError
from lmcore.files import project_root, read_json, sha256_file
from lmcore.lineage.history import Commit, History
from lmcore.lineage.lock import LOCK, Pipeline, read_pipeline
from lmcore.lineage.project import Project
from lmcore.lineage.records import (
    CARD,
    LINEAGE,
    MODEL,
    RAW,
    TOKENIZER_FILE,
    Records,
    compute_key,
    find_changed_origin,
    find_changed_sources,
    list_origins,
    read_card,
    read_sample,
)
from lmcore.lineage.remedy import Mismatch
from lmcore.lineage.runs import TrackedRun, check_identity, compare_tracked, describe_run, find_tracked, read_identity
from lmcore.lineage.steps import State, Step
from lmcore.lineage.target import Target, find_target
from lmcore.tracking import flatten

SEARCHED_COMMITS = 200  # of dvc.lock's history, for the one that a run belongs to


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
        return _trace_copy(name, target, root, present)
    if present is None:
        present = Pipeline({}, {}, {})
    project = Project(root)
    findings = Findings()
    if target.kind == "run":
        pipeline, commit, stages = _locate_run(target, project, history, present, findings)
    elif target.commit is not None:
        pipeline, commit = history.read_pipeline(target.commit), target.commit
        stages = tuple(pipeline.stages)
    else:
        pipeline, commit, stages = present, None, target.stages
    state = State(project, history, pipeline, present, commit, quick)
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
    return Trace(
        name,
        target.kind,
        quick,
        commit,
        findings.subject,
        steps,
        told,
        findings.run,
        findings.notes,
        findings.mismatches,
    )


def find_root(name: str) -> Path:
    """The project that the path `name` lies in, or else the current one."""
    place = Path(name).absolute()
    if place.exists():
        for folder in (place, *place.parents):
            if (folder / "dvc.yaml").exists():
                return folder
    return project_root()


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
    findings.mismatches += records.find_contradictions(state.pipeline)
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


def _locate_run(
    target: Target, project: Project, history: History, present: Pipeline, findings: Findings
) -> tuple[Pipeline, Commit | None, tuple[str, ...]]:
    """The state of the project whose model the run made: the working tree, an experiment or a commit; or none."""
    key, tracked = target.key, target.tracked
    if key is None:
        findings.notes.append(
            "this run has no key of lmcore's: another program made it, and nothing leads further back"
        )
        return Pipeline({}, {}, {}), None, ()
    lineage = project.root / MODEL / LINEAGE
    if lineage.is_file() and _read_key(lineage) == key and "train" in present.stages:
        return present, None, ("train",)
    wanted = _read_params(project.root, key, tracked)
    likely: tuple[Pipeline, Commit] | None = None
    for commit, pipeline in _list_states(history, tracked):
        if "train" not in pipeline.stages:
            continue
        entry = pipeline.outputs.get(MODEL)
        place = None if entry is None else project.find_recorded(entry, LINEAGE)
        if place is not None and _read_key(place) == key:
            return pipeline, commit, ("train",)
        if (
            likely is None
            and place is None
            and wanted
            and _agree(wanted, describe_params(pipeline.stages["train"].params))
        ):
            likely = pipeline, commit
    if likely is not None:
        findings.notes.append(
            f"taken for {likely[1].name} by its parameters: DVC's cache has not the model there, which would prove it"
        )
        return *likely, ("train",)
    text = f"no commit and no experiment records run {key}, and {MODEL} is another's"
    findings.mismatches.append(Mismatch("run", text, _train_again(wanted, present), "train"))
    return Pipeline({}, {}, {}), None, ()


def _list_states(history: History, tracked: TrackedRun | None) -> Iterator[tuple[Commit, Pipeline]]:
    """The states that may be a run's: the experiment that MLflow names, others, dvc.lock's commits."""
    named = history.find_commit(tracked.experiment) if tracked and tracked.experiment else None
    candidates = [*([named] if named else []), *history.list_experiments()]
    for number, commit in enumerate([*candidates, *history.list_commits()]):
        if number >= SEARCHED_COMMITS + len(candidates):
            return
        try:
            yield commit, history.read_pipeline(commit)
        except LmcoreError:  # a commit from before there was a dvc.lock, or with a torn one
            continue


def _read_key(path: Path) -> str | None:
    try:
        values = json.loads(path.read_bytes())
    except ValueError:
        return None
    return values.get("run_key") if isinstance(values, dict) else None


def _read_params(root: Path, key: str, tracked: TrackedRun | None) -> dict[str, str]:
    """The parameters of a run by dotted names, as runs/KEY or MLflow noted them."""
    identity = read_identity(root, key)
    if identity is not None:
        return describe_params(flatten({name: identity.get(name, {}) for name in ("model", "train")}))
    return describe_params(tracked.params) if tracked else {}


def _agree(wanted: Mapping[str, str], recorded: Mapping[str, str]) -> bool:
    names = {name for name in wanted.keys() | recorded.keys() if name.startswith(("model.", "train."))}
    return all(wanted.get(name) == recorded.get(name) for name in names)


def _train_again(wanted: Mapping[str, str], present: Pipeline) -> str:
    """The command that trains with these parameters, by those that params.yaml has otherwise."""
    current = describe_params(flatten(present.params))
    names = sorted(name for name in wanted.keys() | current.keys() if name.startswith(("model.", "train.")))
    settings = [f"{name}={wanted.get(name, 'null')}" for name in names if wanted.get(name) != current.get(name)]
    return " ".join(["dvc exp run", *(f"-S {shlex.quote(setting)}" for setting in settings)]) if wanted else "dvc repro"


def _compare_run(target: Target, records: Records, root: Path, findings: Findings) -> None:
    """What MLflow says of the run beside what the model says, or runs/KEY where the model is gone."""
    key = target.key
    findings.run = findings.run or (describe_run(root, key) if key else {"key": None, "path": None})
    tracked = target.tracked or find_tracked(str(findings.run.get("mlflow_run") or ""), key)
    if tracked is None:
        findings.notes.append("MLflow has no run of this key")
        return
    findings.run["mlflow"] = {
        "run_id": tracked.run_id,
        "name": tracked.name,
        "status": tracked.status,
        "git_commit": tracked.commit,
        "dvc_experiment": tracked.experiment,
        "datasets": dict(tracked.datasets),
    }
    lineage = records.model
    if lineage is None and key is not None and (identity := read_identity(root, key)) is not None:
        fingerprints = {name: value for name, value in identity.items() if name not in ("model", "train")}
        params = {name: identity[name] for name in ("model", "train") if name in identity}
        lineage = {"run_key": key, "params": params, **fingerprints}
    if lineage is not None:
        findings.mismatches += compare_tracked(tracked, lineage)


def _trace_copy(name: str, target: Target, root: Path, present: Pipeline | None) -> Trace:
    """A model's folder from elsewhere: what its own files say."""
    place = Path(target.path)
    folder = place if place.is_dir() else place.parent
    findings = Findings(subject={"path": target.path})
    records: dict[str, Any] = {}
    key = None
    if (folder / LINEAGE).exists():
        lineage = read_json(folder / LINEAGE, "copy the folder anew")
        key = lineage.get("run_key")
        records = {"model": {n: v for n, v in lineage.items() if n != "init_from"}, "origins": list_origins(lineage)}
        if compute_key(lineage) != key:
            text = f"{LINEAGE} names run {key}, and its own parameters and text make {compute_key(lineage)}"
            findings.mismatches.append(Mismatch("lineage", text, "copy the folder anew", path=LINEAGE))
        noted, tokenizer = lineage.get("tokenizer"), folder / TOKENIZER_FILE
        if tokenizer.exists() and sha256_file(tokenizer) != noted:
            text = f"{TOKENIZER_FILE} is {sha256_file(tokenizer)[:12]}, the model was trained with {str(noted)[:12]}"
            findings.mismatches.append(Mismatch("tokenizer", text, "copy the folder anew", path=TOKENIZER_FILE))
    elif (folder / CARD).exists() and (card := read_card(folder / CARD)):
        records, key = {"card": card}, card.get("run")
        findings.notes.append("whether these weights are those that its card tells of is not known")
    else:
        findings.notes.append(f"it has neither {LINEAGE} nor a card of lmcore's: nothing leads further back")
    findings.notes.append(f"no {LOCK} near it records this folder: traced as far as its own files say")
    here = root / MODEL / LINEAGE
    if key and present is not None and here.is_file() and _read_key(here) == key:
        findings.notes.append(f"{MODEL} of this project is of the same run: lmcore trace {MODEL} goes on from there")
    elif key and (root / "runs" / str(key)).is_dir():
        findings.notes.append(f"this project has its run: lmcore trace {key} goes on from there")
    run = {"key": key, "path": None} if key else None
    return Trace(name, "copy", False, None, findings.subject, [], records, run, findings.notes, findings.mismatches)
