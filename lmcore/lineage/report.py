"""A lineage as a chain that reads from the result to the bytes, with short hashes, and as JSON with all of them."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import groupby
from typing import Any

from lmcore.lineage.history import Commit
from lmcore.lineage.steps import Part, Step, Trace
from lmcore.lineage.verify import DAMAGED, Verification
from lmcore.runtime.progress import show_bytes

FORMAT = 1  # of the JSON: keys may be added; a change of what is there gets another number
WIDTH = 116
LABEL = 11  # characters of the longest one, and two spaces
SHOWN_FILES = 3
SHOWN_FAULTS = 5
SHOWN_CHARACTERS = 160  # of a sample's text
STATES = {"same": "", "changed": "CHANGED", "missing": "MISSING"}


def describe_trace(trace: Trace) -> dict[str, Any]:
    """The whole of it for `--json`; docs/lineage.md explains the keys."""
    return {"format": FORMAT, "matches": not trace.mismatches, **asdict(trace)}


def render_trace(trace: Trace) -> Iterator[str]:
    """Its lines."""
    yield trace.asked + (f"  (commit {_show_commit(trace.commit)})" if trace.commit else "")
    yield from _indent(_render_subject(trace.subject), "   ")
    if trace.kind in ("run", "copy"):
        yield from _indent(_render_model(trace), "   ")
    width = max((len(part.path) for step in trace.steps for part in (*step.outputs, *step.inputs)), default=0)
    for step in trace.steps:
        yield "│" if step is not trace.steps[0] else ""
        yield f"● {step.stage}   {step.description}".rstrip()
        yield from _indent(_render_step(step, width), "│  ")
        if step.stage == "train" and trace.kind != "run":
            yield from _indent(_render_model(trace), "│  ")
    if "corpus" in trace.records:
        yield "│"
        yield from _render_corpus(trace.records["corpus"])
    yield ""
    yield from (f"note  {note}" for note in trace.notes)
    yield from map(str, trace.mismatches)
    if not trace.mismatches and trace.steps:
        compared = "sizes" if trace.quick else "bytes"
        known = "everything matches" if not trace.commit else f"what lies here is {trace.commit.name}"
        parts = {part.path for step in trace.steps for part in (*step.outputs, *step.inputs, *step.code)}
        yield f"ok    {known}: {compared} of {len(parts)} files and folders compared"


def describe_verification(found: Verification) -> dict[str, Any]:
    """The whole of it for `--json`; docs/lineage.md explains the keys."""
    return {"format": FORMAT, "sound": found.is_sound, **asdict(found)}


def render_verification(found: Verification) -> Iterator[str]:
    """Its lines."""
    width = max((len(artefact.path) for artefact in found.artefacts), default=0)
    for artefact in found.artefacts:
        label = artefact.state.upper() if artefact.state == DAMAGED else artefact.state
        size = f"{_count_files(artefact.files):>11}  {show_bytes(artefact.bytes):>9}" if artefact.files else ""
        remedy = f"=>  {artefact.remedy}" if artefact.remedy and not artefact.faults else ""
        yield f"{label:12}{artefact.path:{width}}  {size}{remedy}".rstrip()
        for fault in artefact.faults[:SHOWN_FAULTS]:
            yield f"{'':12}  {fault.file}: {fault.text}"
        if len(artefact.faults) > SHOWN_FAULTS:
            yield f"{'':12}  and {len(artefact.faults) - SHOWN_FAULTS:,} more files, all of them in --json"
        if artefact.faults:
            yield f"{'':12}  =>  {artefact.remedy}"
    yield from map(str, found.mismatches)
    rate = show_bytes(found.bytes / max(found.seconds, 1e-9))
    yield f"read {_count_files(found.files)}, {show_bytes(found.bytes)}, in {found.seconds:.1f} s ({rate}/s)"


def _render_subject(subject: Mapping[str, Any]) -> Iterator[str]:
    if (sample := subject.get("sample")) is not None:
        yield _label("prompt", repr(sample["prompt"]))
        text = sample["text"][len(sample["prompt"]) :]
        yield from _wrap("text", repr(text[:SHOWN_CHARACTERS]) + ("..." if len(text) > SHOWN_CHARACTERS else ""))
        end = f"{sample['tokens']} tokens, end {sample['finish']}"
        yield _label("sample", f"{sample['sample']} of this prompt, {end}")
        yield _label("seed", f"{sample['seed']}, from sample.seed {sample['settings'].get('seed')}")
        settings = {name: value for name, value in sample["settings"].items() if name != "seed"}
        yield from _wrap("settings", "  ".join(f"{name}={value}" for name, value in settings.items()))
    if (metrics := subject.get("metrics")) is not None:
        yield from _wrap("figures", "  ".join(f"{name}={value}" for name, value in metrics.items()))
    if (file := subject.get("file")) is not None:
        origin = f", from {file['url']}" if file.get("url") else f", of source {file.get('source')}"
        yield _label("file", f"{file['path']}, {show_bytes(file['bytes'])}, sha256 {file['sha256'][:12]}{origin}")


def _render_step(step: Step, width: int) -> Iterator[str]:
    yield from _render_parts("made", step.outputs, width)
    yield from _render_parts("from", step.inputs, width)
    changed = [part for part in step.code if part.state != "same"]
    told = f"{len(changed)} CHANGED: {', '.join(part.path for part in changed)}" if changed else "as it was"
    yield _label("code", f"{len(step.code)} files and folders, {told}")
    given = [(*name.split(".", 1), value) for name, value in step.params.items() if value is not None]
    for number, (section, values) in enumerate(groupby(given, key=lambda entry: entry[0])):
        words = (f"{name}={_show(value)}" for _, name, value in values)
        yield from _wrap("params" if number == 0 else "", f"{section}: {'  '.join(words)}")
    yield _label("recorded", _show_commit(step.commit) if step.commit else "NOT COMMITTED")


def _render_parts(label: str, parts: Iterable[Part], width: int) -> Iterator[str]:
    for number, part in enumerate(parts):
        count = _count_files(part.files) if part.files is not None else ""
        size = show_bytes(part.bytes) if part.bytes is not None else ""
        made_by = f"  from {part.stage}" if label == "from" and part.stage else ""
        line = f"{part.path:{width}}  {part.md5[:8]}  {count:>11}  {size:>9}{made_by}  {STATES[part.state]}"
        yield _label(label if number == 0 else "", line).rstrip()


def _render_model(trace: Trace) -> Iterator[str]:
    records, run = trace.records, trace.run
    if run and run.get("key"):
        places = [f"{run['path']}"] if run.get("path") else []
        places += [f"MLflow {run['mlflow_run']}"] if run.get("mlflow_run") else []
        places += [f"branched off {run['branch']['run_key']}"] if run.get("branch") else []
        yield _label("run", str(run["key"]) + (f"  ({', '.join(places)})" if places else ""))
    if run and (tracked := run.get("mlflow")):
        code = f", from commit {tracked['git_commit'][:9]}" if tracked.get("git_commit") else ""
        experiment = f", DVC experiment {tracked['dvc_experiment']}" if tracked.get("dvc_experiment") else ""
        yield _label("mlflow", f"{tracked['name']}  {tracked['run_id']}  {tracked['status']}{code}{experiment}")
    if model := records.get("model"):
        losses = "  ".join(f"{name}={value}" for name, value in (model.get("metrics") or {}).items())
        yield from _wrap("reached", losses)
        if tokens := model.get("tokens"):
            yield _label("tokens", ", ".join(f"{split} {noted[:12]}" for split, noted in tokens.items()))
        yield _label("tokenizer", str(model.get("tokenizer"))[:12])
    for name, value in (records.get("card") or {}).items():
        yield f"{name:18} {value}"
    for depth, origin in enumerate(records.get("origins") or ()):
        place = f"{origin['repository']}@{origin['commit'][:9]}" if "repository" in origin else "a folder"
        key = f", run {origin['run_key']}" if origin.get("run_key") else ""
        yield "   " * depth + f"└─ began as {place}, weights {origin['weights'][:12]}{key}"


def _render_corpus(corpus: Mapping[str, Any]) -> Iterator[str]:
    files = corpus["files"]
    yield "● bytes   as published, listed in data/raw/manifest.json"
    for source in corpus["sources"]:
        of_source = [file for file in files if file.get("source") == source["name"]]
        size = show_bytes(sum(file["bytes"] for file in of_source))
        version = f" ({source['version']})" if source.get("version") else ""
        place = source.get("url") or (f"path {source['path']}" if source.get("path") else "this machine")
        licence = source.get("licence") or "unknown"
        yield f"   {source['name']}{version}: {_count_files(len(of_source))}, {size}, from {place}, licence: {licence}"
        for file in of_source[:SHOWN_FILES]:
            url = f"  {file['url']}" if file.get("url") else ""
            yield f"      sha256 {file['sha256'][:12]}  {show_bytes(file['bytes']):>9}  {file['path']}{url}"
        if len(of_source) > SHOWN_FILES:
            yield f"      and {len(of_source) - SHOWN_FILES:,} more, all of them in --json"


def _count_files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"


def _show(value: object) -> str:
    text = str(value)
    return text if len(text) <= WIDTH // 2 else text[: WIDTH // 2] + "..."


def _show_commit(commit: Commit) -> str:
    experiment = f"experiment {commit.experiment}, " if commit.experiment else ""
    return f"{experiment}{commit.id[:9]}  {commit.date}  {commit.subject}"


def _label(label: str, text: str) -> str:
    return f"{label:{LABEL}}{text}"


def _wrap(label: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, WIDTH - 3 - LABEL, break_long_words=False, break_on_hyphens=False)
    return [_label("" if number else label, line) for number, line in enumerate(lines)]


def _indent(lines: Iterable[str], margin: str) -> Iterator[str]:
    return (margin + line for line in lines)
