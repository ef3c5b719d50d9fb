"""One stage of a lineage: what it read and made, with what code and parameters, who recorded it, what differs since."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lmcore.lineage.dvc_files import Project, hash_folder
from lmcore.lineage.history import Commit, History
from lmcore.lineage.lock import PARAMS, PIPELINE, Entry, LockedStage, Pipeline
from lmcore.lineage.remedy import Mismatch, restore
from lmcore.params import show_value


@dataclass(frozen=True)
class Part:
    """A file or folder as recorded; `stage` made it, `state` is how what lies there now is (see Project.compare)."""

    path: str
    md5: str
    bytes: int | None
    files: int | None
    stage: str | None
    state: str


@dataclass(frozen=True)
class Step:
    """A stage as it ran; `commit` is the first whose dvc.lock says so."""

    stage: str
    description: str
    command: str
    outputs: tuple[Part, ...]
    inputs: tuple[Part, ...]
    code: tuple[Part, ...]
    params: Mapping[str, Any]
    commit: Commit | None


@dataclass(frozen=True)
class State:
    """A state of the project, a commit's or (`commit` None) the working tree's, beside the files that are there now."""

    project: Project
    history: History
    pipeline: Pipeline
    present: Pipeline  # the working tree's
    commit: Commit | None = None
    quick: bool = False

    def read(self, stages: list[LockedStage]) -> None:
        """Read all files that these stages made and were made from, side by side."""
        entries = [entry for stage in stages for entry in (*stage.inputs, *([] if self.quick else stage.outputs))]
        wanted = {entry.path: None for entry in entries if not (self.quick and self._is_made(entry))}
        self.project.read(wanted, "trace")

    def build_step(self, stage: LockedStage) -> Step:
        """The stage beside the files that are there now."""
        described = self.pipeline.described.get(stage.name)
        outputs, inputs, code = (
            tuple(map(self._build_part, entries)) for entries in (stage.outputs, stage.data, stage.code)
        )
        commit = self.history.find_recording(stage.name, self.commit)
        text = described.description if described else ""
        return Step(stage.name, text, stage.command, outputs, inputs, code, stage.params, commit)

    def _build_part(self, entry: Entry) -> Part:
        found = self.pipeline.find_output(entry.path)
        state = self.project.compare(entry, quick=self.quick and self._is_made(entry))
        return Part(entry.path, entry.md5, entry.bytes, entry.files, found[0].name if found else None, state)

    def _is_made(self, entry: Entry) -> bool:
        return self.pipeline.find_output(entry.path) is not None

    def find_mismatches(self, stage: LockedStage, step: Step) -> Iterator[Mismatch]:
        """What differs since, of the working tree's state with what mends it; of a commit's, how to have it back."""
        yield from self._compare_outputs(stage, step)
        yield from self._compare_inputs(stage, step)
        yield from self._compare_code(stage, step)
        yield from self._compare_definition(stage)
        yield from self._find_uncommitted(stage, step)

    def again(self, remedy: str) -> str:
        """What mends the working tree; or what brings a commit's state back."""
        if self.commit is None:
            return remedy
        if self.commit.experiment:
            return f"dvc exp apply {shlex.quote(self.commit.experiment)}, then dvc repro"
        return f"git checkout {self.commit.id[:9]}, then dvc repro"

    def _tell(self) -> str:
        """Whose state the files are compared with."""
        return "dvc.lock" if self.commit is None else self.commit.name

    def _compare_outputs(self, stage: LockedStage, step: Step) -> Iterator[Mismatch]:
        for part, entry in zip(step.outputs, stage.outputs, strict=True):
            if part.state == "same":
                continue
            kind, told = ("missing", "is not there") if part.state == "missing" else ("changed", "differs")
            text = f"{part.path} {told}: {self._tell()} has {part.md5[:8]}{self._count_changed(entry, part.state)}"
            if self.commit is None:
                remedy = restore(self.project, self.history, self.pipeline, stage.name, entry)
            else:
                remedy = self.again("")
            yield Mismatch(f"output-{kind}", text, remedy, stage.name, part.path)

    def _count_changed(self, entry: Entry, state: str) -> str:
        """` (2 of 5 files: a, b)`, where it is known which."""
        if state == "missing" or not entry.is_folder or self.quick:
            return ""
        recorded = self.project.list_recorded(entry)
        if recorded is None:
            return ""
        found = {name: content.md5 for name, content in self.project.contents(entry.path).items()}
        names = sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))
        return f" ({len(names):,} of {len(recorded):,} files: {', '.join(names[:3])}{', ...' if names[3:] else ''})"

    def _compare_inputs(self, stage: LockedStage, step: Step) -> Iterator[Mismatch]:
        """Whether a stage read what the other now has made, and what no stage makes is still so."""
        for part in step.inputs:
            if part.stage is not None:
                made = self._find_made(part)
                if made is not None and made != part.md5:
                    text = f"{stage.name} read {part.path} {part.md5[:8]}, and {part.stage} has made {made[:8]} since"
                    yield Mismatch("input", text, self.again(f"dvc repro {stage.name}"), stage.name, part.path)
            elif part.state != "same":
                text = f"{part.path}, which {stage.name} read, {_differs(part)}"
                yield Mismatch("input", text, self.again(f"dvc repro {stage.name}"), stage.name, part.path)

    def _find_made(self, part: Part) -> str | None:
        """The hash of what the producing stage made at an input's place; None if only its folder's is known."""
        found = self.pipeline.find_output(part.path)
        assert found is not None
        entry = found[1]
        if entry.path == part.path:
            return entry.md5
        recorded = self.project.list_recorded(entry)
        return None if recorded is None else hash_part(recorded, part.path.removeprefix(f"{entry.path}/"))

    def _compare_code(self, stage: LockedStage, step: Step) -> Iterator[Mismatch]:
        changed = [part for part in step.code if part.state != "same"]
        if changed:
            names = ", ".join(part.path for part in changed[:3]) + (", ..." if changed[3:] else "")
            text = f"code of {stage.name} is not what it ran with: {names}"
            yield Mismatch("code", text, self.again(f"dvc repro {stage.name}"), stage.name, changed[0].path)

    def _compare_definition(self, stage: LockedStage) -> Iterator[Mismatch]:
        """The stage's parameters, its command and what it reads, as the working tree has them."""
        changes = self.present.find_changed_params(stage)
        if changes:
            told = ", ".join(f"{c.key} {show_value(c.old)} -> {show_value(c.new)}" for c in changes[:3])
            text = f"{PARAMS} is not what {stage.name} ran with: {told}{', ...' if changes[3:] else ''}"
            yield Mismatch("params", text, self.again(f"dvc repro {stage.name}"), stage.name, PARAMS)
        described = self.present.described.get(stage.name)
        if described is None:
            text, remedy = f"{PIPELINE} has no stage {stage.name} any more", f"git checkout {PIPELINE}"
            yield Mismatch("pipeline", text, self.again(remedy), stage.name, PIPELINE)
            return
        read = {entry.path for entry in stage.inputs}
        made = {entry.path for entry in stage.outputs}
        for told, old, new in (
            ("another command", {stage.command}, {described.command}),
            ("other dependencies", read, described.inputs),
            ("other outputs", made, described.outputs.keys()),
        ):
            if old != new:
                names = ", ".join(sorted(old ^ new)[:3])
                text = f"{PIPELINE} gives {stage.name} {told} than it ran with: {names}"
                yield Mismatch("pipeline", text, self.again(f"dvc repro {stage.name}"), stage.name, PIPELINE)

    def _find_uncommitted(self, stage: LockedStage, step: Step) -> Iterator[Mismatch]:
        """A result that no commit records, or whose commit has other code than made it."""
        if step.commit is None:
            text = f"no commit records what {stage.name} made"
            yield Mismatch("uncommitted", text, "git commit --all", stage.name, "dvc.lock")
            return
        missing = self.history.find_missing_code(stage, step.commit, self.project)
        head = self.commit or self.history.find_commit("HEAD")
        if missing and head is not None:  # results are often committed before the code
            missing = self.history.find_missing_code(stage, head, self.project)
        if missing:
            names = ", ".join(missing[:3]) + (", ..." if missing[3:] else "")
            text = f"no commit has both what {stage.name} made and what it was made with: {names}"
            yield Mismatch("uncommitted", text, self.again("git commit --all"), stage.name, missing[0])


def _differs(part: Part) -> str:
    return "is gone" if part.state == "missing" else f"is no longer {part.md5[:8]}"


def hash_part(recorded: Mapping[str, str], name: str) -> str | None:
    """The hash of a file or a folder within a recorded folder; None if it was not there."""
    if name in recorded:
        return recorded[name]
    inside = {path.removeprefix(f"{name}/"): md5 for path, md5 in recorded.items() if path.startswith(f"{name}/")}
    return hash_folder(inside) if inside else None
