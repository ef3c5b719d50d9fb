"""dvc.yaml, params.yaml and the stage scripts say the same."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from imports import ROOT, import_closure, parse, source_files
from ruamel.yaml import YAML

from lmcore.hardware.params import Profile
from lmcore.params import Section, parse_section, read_params

PIPELINE: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")
STAGES: dict[str, dict[str, Any]] = PIPELINE["stages"]
PARAMS = read_params(ROOT / "params.yaml")
SHARED_SECTIONS = {"model", "hardware", "profiles", "tracking"}  # every other one belongs to the stage of its name

# Errors, progress, process pools, locks and trackers cannot change a result: editing them reruns nothing.
CANNOT_CHANGE_RESULTS = {Path("lmcore/errors.py"), *source_files("lmcore/runtime"), *source_files("lmcore/tracking")}
# The folder of a stage's own code; every other folder of lmcore is its stage's name.
FOLDERS = {"sample": "generate"}
SHARED_FOLDERS = {"tokenizer", "tokens", "model", "hardware"}
MAX_ENTRIES = 55  # of lmcore, all stages together
MADE_BY_STAGES = ("data", "models", "reports")

each_stage = pytest.mark.parametrize("stage", STAGES)


def script(stage: str) -> Path:
    return Path("stages", f"{stage}.py")


def entries(stage: str, *kinds: str) -> list[str]:
    """The paths under `deps`, `outs`, `metrics` or `plots`; `- path: {cache: false}` stands for its path."""
    listed = [entry for kind in kinds for entry in STAGES[stage].get(kind, [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in listed]


def expected_code(stage: str) -> list[str]:
    """The code that the stage's result can depend on.

    The stage's own folder and shared folders are listed whole; of another stage's folder, the files that are imported.
    """
    whole = {Path("lmcore", name) for name in {FOLDERS.get(stage, stage), *SHARED_FOLDERS}}
    needed = {script(stage), *import_closure(script(stage))} - CANNOT_CHANGE_RESULTS
    return sorted({str(path.parent if path.parent in whole else path) for path in needed})


def sections_read(stage: str) -> dict[str, str]:
    """The sections that the script reads with `read_section(Class, "name")`, and the classes' names."""
    calls = [node for node in ast.walk(parse(script(stage))) if isinstance(node, ast.Call)]
    found = [call.args for call in calls if isinstance(call.func, ast.Name) and call.func.id == "read_section"]
    return {ast.literal_eval(name): ast.unparse(kind) for kind, name in found}


def paths_named(stage: str) -> set[str]:
    """Every `Path("data/...")` in the script and in what it imports; `{...}` in an f-string becomes `*`."""
    found = set()
    for path in (script(stage), *import_closure(script(stage))):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Path" and len(node.args) == 1:
                text = re.sub("{.*?}", "*", ast.unparse(node.args[0]).removeprefix("f").strip("'"))
                if text.partition("/")[0] in MADE_BY_STAGES:
                    found.add(text)
    return found


def test_one_name_in_five_places() -> None:
    names = set(STAGES)
    assert {path.stem for path in source_files("stages")} == names, "each stage has its script in stages/"
    assert set(PARAMS) - SHARED_SECTIONS == names, "each stage has its section of params.yaml"
    for stage in STAGES:
        assert entries(stage, "metrics") == [f"reports/metrics/{stage}.json"], "each stage has its metrics file"
        assert sections_read(stage).keys() - SHARED_SECTIONS == {stage}, f"{script(stage)} reads the section {stage}"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [stage for stage in STAGES if f"`{stage}`" not in readme]
    assert not missing, f"README.md does not name the stages {', '.join(missing)} as `NAME`"


@each_stage
def test_stages_are_one_simple_described_command(stage: str) -> None:
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage}"
    assert re.fullmatch(r"[A-Z].*[^.]", STAGES[stage]["desc"]), "a phrase, as `dvc stage list` shows it"


@each_stage
def test_deps_are_what_the_script_imports(stage: str) -> None:
    """A missing line keeps an old result after a change; a superfluous one makes it again for nothing."""
    listed = {entry for entry in entries(stage, "deps") if not entry.startswith(MADE_BY_STAGES)}
    expected = expected_code(stage)
    complaints = [f"missing: {entry}" for entry in expected if entry not in listed]
    complaints += [f"superfluous: {entry}" for entry in sorted(listed.difference(expected))]
    wanted = "\n".join(f"      - {entry}" for entry in expected)
    assert not complaints, "\n".join([f"the deps of {stage} in dvc.yaml:", *complaints, "=> make them", wanted])


def test_the_list_of_code_is_short() -> None:
    listed = {stage: [entry for entry in entries(stage, "deps") if entry.startswith("lmcore")] for stage in STAGES}
    assert sum(map(len, listed.values())) <= MAX_ENTRIES
    assert len(listed["evaluate"]) <= 12


@pytest.mark.parametrize(
    ("edited", "rerun"),
    [
        ("lmcore/generate/sampling.py", {"sample"}),
        ("lmcore/serve/app.py", set()),
        ("lmcore/runtime/progress.py", set()),
        ("lmcore/runtime/process_pool.py", set()),
        ("lmcore/runtime/gpu_locks.py", set()),
        ("lmcore/evaluate/ngram.py", {"evaluate"}),
        ("lmcore/prepare/dedup.py", {"prepare"}),
    ],
)
def test_an_edit_reruns_the_stages_that_it_concerns(edited: str, rerun: set[str]) -> None:
    assert (ROOT / edited).is_file()
    concerned = {stage for stage in STAGES for entry in entries(stage, "deps") if Path(edited).is_relative_to(entry)}
    assert concerned == rerun


@each_stage
def test_files_are_those_that_the_script_names(stage: str) -> None:
    listed = {entry for entry in entries(stage, "deps", "outs", "metrics", "plots") if entry.startswith(MADE_BY_STAGES)}
    named = paths_named(stage)
    unlisted = {name for name in named if not any(overlap(name, entry) for entry in listed)}
    assert not unlisted, f"{script(stage)} names {unlisted}: add them to the stage's deps or outs in dvc.yaml"
    unused = {entry for entry in listed if not any(overlap(name, entry) for name in named)}
    assert not unused, f"{script(stage)} names no {unused}: remove them from the stage in dvc.yaml"


def overlap(pattern: str, path: str) -> bool:
    """Whether they are the same, or one holds the other."""
    return Path(path).match(pattern) or Path(path).is_relative_to(pattern) or Path(pattern).is_relative_to(path)


@each_stage
def test_params_are_those_that_the_script_reads(stage: str) -> None:
    listed = STAGES[stage]["params"]
    assert {name.partition(".")[0] for name in listed} == sections_read(stage).keys()
    for name in listed:
        section, _, key = name.partition(".")
        assert not key or key in PARAMS[section], f"{stage} lists {name}, which params.yaml lacks"


@each_stage
def test_what_git_keeps_is_not_cached(stage: str) -> None:
    for kind in ("metrics", "plots"):
        for entry in STAGES[stage].get(kind, []):
            assert next(iter(entry.values()))["cache"] is False, f"{stage} {kind}: {entry} needs `cache: false`"
    for entry in STAGES[stage].get("outs", []):
        kept = isinstance(entry, str) or entry == {next(iter(entry)): {"cache": False}}
        assert kept, f"{stage} outs: {entry}: a path alone, which DVC keeps, or one with `cache: false`, which git does"


def test_artifacts_are_outputs() -> None:
    outs = {out for stage in STAGES for out in entries(stage, "outs")}
    assert {artifact["path"] for artifact in PIPELINE["artifacts"].values()} <= outs


@each_stage
def test_sections_fit_their_models(stage: str) -> None:
    module = importlib.import_module(f"stages.{stage}")
    for name, class_name in sections_read(stage).items():
        kind: type[Section] = getattr(module, class_name)
        assert parse_section(kind, name, PARAMS[name]) == kind(), f"{name}: params.yaml states {class_name}'s defaults"
        assert set(kind.model_fields) == set(PARAMS[name])


def test_profiles_fit_their_model() -> None:
    for name, row in PARAMS["profiles"].items():
        parse_section(Profile, f"profiles.{name}", row)


def lines_of_params() -> Iterator[tuple[int, str]]:
    yield from enumerate((ROOT / "params.yaml").read_text(encoding="utf-8").splitlines(), start=1)


def test_every_parameter_is_explained() -> None:
    """In one comment on its line. In the table of profiles, whose keys are hardware's, each row is."""
    section, bare = "", []
    for number, line in lines_of_params():
        section = line.partition(":")[0] if re.match(r"\w", line) else section
        key = re.match(r"  [\w-]+:", line)
        if key and "  # " not in line:
            bare.append(f"params.yaml:{number} {section}.{key.group().strip(' :')}")
    assert not bare, "\n".join(["", *bare, "=> say in a comment on the line what it means"])


def test_params_survive_experiments() -> None:
    """`dvc exp run -S` rewrites the file: flow lists become blocks, anchors are expanded, `${}` is resolved."""
    for number, line in lines_of_params():
        code = re.sub(r"(^|\s+)#.*", "", line)
        rewritten = re.search(r"^\s*(- |[\w-]+:) *([\[{&*]|null$|~$)|<<:|\${", code)
        assert not rewritten, f"params.yaml:{number}: {code.strip()}: block style, empty for null, no anchors, no ${{}}"
