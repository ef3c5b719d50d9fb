"""dvc.lock and dvc.yaml as a graph of stages: what each read and made, with the hashes that DVC recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from lmcore.errors import ArtifactError, ParameterError
from lmcore.params import Change, compare_values, flatten, parse_params

LOCK, PIPELINE, PARAMS = "dvc.lock", "dvc.yaml", "params.yaml"
CODE_FOLDERS = ("lmcore", "stages")
TORN = f"git checkout {LOCK}, then dvc repro, which has what was done from DVC's cache"


@dataclass(frozen=True)
class Entry:
    """A file or a folder as DVC recorded it; `md5` of a folder, of the list of its files, ends with `.dir`."""

    path: str
    md5: str
    bytes: int | None
    files: int | None  # of a folder

    @property
    def is_folder(self) -> bool:
        """Whether it stands for the files below it."""
        return self.md5.endswith(".dir")

    def holds(self, path: str) -> bool:
        """Whether `path` is it or lies in it."""
        return PurePosixPath(path).is_relative_to(self.path)


@dataclass(frozen=True)
class LockedStage:
    """What a stage was when it last ran: its command, what it read, with which parameters, and what it made."""

    name: str
    command: str
    inputs: tuple[Entry, ...]  # code, data, and what other stages made
    recorded_params: Mapping[str, Any]  # by the names that dvc.yaml lists: a whole section, or `section.key`
    outputs: tuple[Entry, ...]

    @cached_property
    def params(self) -> dict[str, Any]:
        """By dotted names."""
        return flatten(self.recorded_params)

    @property
    def code(self) -> tuple[Entry, ...]:
        """Those of the inputs that are the project's code."""
        return tuple(entry for entry in self.inputs if entry.path.partition("/")[0] in CODE_FOLDERS)

    @property
    def data(self) -> tuple[Entry, ...]:
        """The other inputs."""
        return tuple(entry for entry in self.inputs if entry not in self.code)


@dataclass(frozen=True)
class DescribedStage:
    """A stage as dvc.yaml has it; `outputs` say whether DVC keeps each in its cache (git keeps the others)."""

    description: str
    command: str
    inputs: frozenset[str]
    outputs: Mapping[str, bool]


@dataclass(frozen=True)
class Pipeline:
    """dvc.lock, dvc.yaml and params.yaml of one state of the project: the working tree's or a commit's."""

    stages: Mapping[str, LockedStage]
    described: Mapping[str, DescribedStage] = field(repr=False)
    params: Mapping[str, Any] = field(repr=False)

    @cached_property
    def outputs(self) -> dict[str, Entry]:
        """What all stages made, by path."""
        return {entry.path: entry for stage in self.stages.values() for entry in stage.outputs}

    def find_output(self, path: str) -> tuple[LockedStage, Entry] | None:
        """The stage that made `path`, or what it lies in, and that output; None if none did."""
        made = ((stage, entry) for stage in self.stages.values() for entry in stage.outputs)
        return next(((stage, entry) for stage, entry in made if entry.holds(path)), None)

    def is_cached(self, stage: str, path: str) -> bool:
        """Whether DVC keeps this output, and not git."""
        return self.described[stage].outputs.get(path, True) if stage in self.described else True

    def walk_back(self, *names: str) -> list[LockedStage]:
        """These stages and all that they were made from, each before those that it reads from."""
        order: list[str] = []

        def visit(name: str, above: tuple[str, ...]) -> None:
            if name in above:
                raise ArtifactError(f"{LOCK}: {' and '.join(above)} read from each other: {TORN}")
            if name not in order:
                for entry in self.stages[name].data:
                    if (found := self.find_output(entry.path)) is not None:
                        visit(found[0].name, (*above, name))
                order.append(name)

        for name in names:
            visit(name, ())
        return [self.stages[name] for name in reversed(order)]

    def find_changed_params(self, stage: LockedStage) -> list[Change]:
        """The parameters of a stage that params.yaml has otherwise than when the stage ran."""
        keys = tuple(f"{key}." for key in stage.recorded_params)
        present = {name: value for name, value in flatten(self.params).items() if f"{name}.".startswith(keys)}
        names = stage.params.keys() | present.keys()
        changes = compare_values({"": stage.params}, {"": {name: present.get(name) for name in sorted(names)}})
        return [change for change in changes if change.old is not None or change.new is not None]


def read_pipeline(root: Path, *, unrecorded: bool = False) -> Pipeline:
    """The working tree's; `unrecorded`: without its dvc.lock, which is missing or torn, as if no stage had run.

    Raises ArtifactError for a torn dvc.lock, ParameterError for the others.
    """
    files = {name: (root / name).read_bytes() for name in (LOCK, PIPELINE, PARAMS) if (root / name).exists()}
    return parse_pipeline({**files, LOCK: b"schema: '2.0'\n"} if unrecorded else files)


def parse_pipeline(files: Mapping[str, bytes], commit: str = "") -> Pipeline:
    """That of the working tree or the `commit` which has these files. Raises as `read_pipeline`."""
    if LOCK not in files:
        raise ArtifactError(f"{commit} has no {LOCK}: nothing is recorded there")
    told, damages = f"{commit}: " if commit else "", (LookupError, TypeError, ValueError, AttributeError)
    try:
        lock = parse_params(files[LOCK], LOCK)
        if "schema" not in lock:
            raise ValueError("no schema")
        stages = {name: _read_locked(name, record) for name, record in (lock.get("stages") or {}).items()}
    except (ParameterError, *damages):
        raise ArtifactError(f"{told}{LOCK} is damaged: {TORN}") from None
    described, params = (parse_params(files.get(name, b"{}"), f"{told}{name}") for name in (PIPELINE, PARAMS))
    try:
        stages_described = {name: _read_described(record) for name, record in described.get("stages", {}).items()}
    except damages:
        raise ParameterError(
            f"{told}{PIPELINE} does not describe stages as DVC does: dvc stage list says more"
        ) from None
    return Pipeline(stages, stages_described, params)


def _read_locked(name: str, record: Mapping[str, Any]) -> LockedStage:
    params = {key: value for values in record.get("params", {}).values() for key, value in values.items()}
    inputs, outputs = (tuple(map(_read_entry, record.get(kind, ()))) for kind in ("deps", "outs"))
    return LockedStage(name, record["cmd"], inputs, params, outputs)


def _read_entry(record: Mapping[str, Any]) -> Entry:
    if "md5" not in record:
        raise ArtifactError(f"{LOCK}: {record['path']} has no MD5, and lmcore knows files by it alone: copy it in")
    return Entry(record["path"], record["md5"], record.get("size"), record.get("nfiles"))


def _read_described(record: Mapping[str, Any]) -> DescribedStage:
    outputs = {}
    for kind in ("outs", "metrics", "plots"):
        for entry in record.get(kind, ()):
            path, options = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
            outputs[path] = (options or {}).get("cache", True)
    return DescribedStage(record.get("desc", ""), record["cmd"], frozenset(record.get("deps", ())), outputs)
