"""One stage of a lineage: what it read and made, with what code and parameters, who recorded it, what differs since."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmcore.errors import list_some
from lmcore.lineage.dvc_files import Project, hash_part
from lmcore.lineage.history import Commit, find_commit, find_missing_code, find_recording
from lmcore.lineage.lock import LOCK, PARAMS, PIPELINE, Entry, LockedStage, Pipeline
from lmcore.lineage.remedy import Mismatch, restore
from lmcore.params import show_value


@dataclass(frozen=True)
class Part(Entry):
    """A file or folder as recorded; `stage` made it, `state` is how what lies there now is (see Project.compare)."""

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


@dataclass
class Trace:
    """A result's way: `steps` from it to the bytes, each before those that it was made from.

    `kind` is that of the target. `commit` is None for the working tree's state. `subject` is what is known of the very
    thing asked for (a sample, a file of the corpus, metrics), `records` what the artefacts note of themselves; `notes`
    say what could not be known.
    """

    asked: str
    kind: str
    quick: bool
    commit: Commit | None = None
    subject: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    records: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    mismatches: list[Mismatch] = field(default_factory=list)


@dataclass(frozen=True)
class State:
    """A state of the project, a commit's or (`commit` None) the working tree's, beside the files that are there now."""

    project: Project
    pipeline: Pipeline
    present: Pipeline  # the working tree's
    commit: Commit | None = None
    quick: bool = False

    def build_step(self, stage: LockedStage) -> Step:
        """The stage beside the files that are there now."""
        described = self.pipeline.described.get(stage.name)
        outputs, inputs, code = (
            tuple(map(self._build_part, entries)) for entries in (stage.outputs, stage.data, stage.code)
        )
        commit = find_recording(self.project.root, stage.name, self.commit)
        text = described.description if described else ""
        return Step(stage.name, text, stage.command, outputs, inputs, code, stage.params, commit)

    def _build_part(self, entry: Entry) -> Part:
        found = self.pipeline.find_output(entry.path)
        state = self.project.compare(entry, quick=self.quick and found is not None)
        return Part(entry.path, entry.md5, entry.bytes, entry.files, found[0].name if found else None, state)

    def find_mismatches(self, stage: LockedStage, step: Step) -> Iterator[Mismatch]:
        """What differs since, of the working tree's state with what mends it; of a commit's, how to have it back."""
        yield from self._compare_outputs(step)
        yield from self._compare_inputs(step)
        if changed := [part.path for part in step.code if part.state != "same"]:
            text = f"code of {step.stage} is not what it ran with: {list_some(changed)}"
            yield self._differ("code", text, step, changed[0])
        yield from self._compare_definition(stage, step)
        yield from self._find_uncommitted(stage, step)

    def again(self, remedy: str) -> str:
        """What mends the working tree; or what brings a commit's state back."""
        if self.commit is None:
            return remedy
        if self.commit.experiment:
            return f"dvc exp apply {shlex.quote(self.commit.experiment)}, then dvc repro"
        return f"git checkout {self.commit.id[:9]}, then dvc repro"

    def _differ(self, kind: str, text: str, step: Step, path: str, remedy: str = "") -> Mismatch:
        return Mismatch(kind, text, self.again(remedy or f"dvc repro {step.stage}"), step.stage, path)

    def _compare_outputs(self, step: Step) -> Iterator[Mismatch]:
        recorded_by = "dvc.lock" if self.commit is None else self.commit.name
        for part in step.outputs:
            if part.state == "same":
                continue
            told, files = ("differs", self._count_changed(part)) if part.state == "changed" else ("is not there", "")
            text = f"{part.path} {told}: {recorded_by} has {part.md5[:8]}{files}"
            remedy = "" if self.commit else restore(self.project, self.pipeline, step.stage, part)
            yield self._differ(f"output-{part.state}", text, step, part.path, remedy)

    def _count_changed(self, part: Part) -> str:
        """` (2 of 5 files: a, b)`, where it is known which."""
        if not part.is_folder or self.quick or (recorded := self.project.list_recorded(part)) is None:
            return ""
        found = {name: content.md5 for name, content in self.project.contents(part.path).items()}
        names = sorted(name for name in recorded.keys() | found.keys() if recorded.get(name) != found.get(name))
        return f" ({len(names):,} of {len(recorded):,} files: {list_some(names)})"

    def _compare_inputs(self, step: Step) -> Iterator[Mismatch]:
        """Whether a stage read what the other now has made, and what no stage makes is still so."""
        for part in step.inputs:
            if found := self.pipeline.find_output(part.path):
                made: str | None = found[1].md5
                if found[1].path != part.path:  # a part of what the other stage made; None if that is not known
                    inside = part.path.removeprefix(f"{found[1].path}/")
                    made = hash_part(self.project.list_recorded(found[1]) or {}, inside)
                if made and made != part.md5:
                    told = f"read {part.path} {part.md5[:8]}, and {part.stage} has made {made[:8]} since"
                    yield self._differ("input", f"{step.stage} {told}", step, part.path)
            elif part.state != "same":
                told = "is gone" if part.state == "missing" else f"is no longer {part.md5[:8]}"
                yield self._differ("input", f"{part.path}, which {step.stage} read, {told}", step, part.path)

    def _compare_definition(self, stage: LockedStage, step: Step) -> Iterator[Mismatch]:
        """The stage's parameters, its command and what it reads, as the working tree has them."""
        if changes := self.present.find_changed_params(stage):
            told = list_some([f"{c.key} {show_value(c.old)} -> {show_value(c.new)}" for c in changes])
            yield self._differ("params", f"{PARAMS} is not what {stage.name} ran with: {told}", step, PARAMS)
        described = self.present.described.get(stage.name)
        if described is None:
            text, remedy = f"{PIPELINE} has no stage {stage.name} any more", f"git checkout {PIPELINE}"
            yield self._differ("pipeline", text, step, PIPELINE, remedy)
            return
        for told, old, new in (
            ("another command", {stage.command}, {described.command}),
            ("other dependencies", {entry.path for entry in stage.inputs}, described.inputs),
            ("other outputs", {entry.path for entry in stage.outputs}, described.outputs.keys()),
        ):
            if old != new:
                names = list_some(sorted(old ^ new))
                text = f"{PIPELINE} gives {stage.name} {told} than it ran with: {names}"
                yield self._differ("pipeline", text, step, PIPELINE)

    def _find_uncommitted(self, stage: LockedStage, step: Step) -> Iterator[Mismatch]:
        """A result that no commit records, or whose commit has other code than made it."""
        commit = "git commit --all"
        if step.commit is None:
            yield self._differ("uncommitted", f"no commit records what {stage.name} made", step, LOCK, commit)
            return
        missing = find_missing_code(self.project, stage, step.commit)
        head = self.commit or find_commit(self.project.root, "HEAD")
        if missing and head is not None:  # results are often committed before the code
            missing = find_missing_code(self.project, stage, head)
        if missing:
            text = f"no commit has both what {stage.name} made and what it was made with: {list_some(missing)}"
            yield self._differ("uncommitted", text, step, missing[0], commit)
