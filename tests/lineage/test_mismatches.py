"""What `lmcore trace` says no longer matches, one thing at a time, and that what it advises mends it."""

import json
import shutil
from collections.abc import Callable

import pytest
from damage import flip, mend
from projects import Project, finished_once
from ruamel.yaml import YAML

from lmcore.files import read_json
from lmcore.lineage.remedy import Mismatch
from lmcore.lineage.trace import trace
from lmcore.tracking.store import connect

pytestmark = [
    finished_once,
    pytest.mark.filterwarnings("ignore"),  # MLflow's and its libraries' own
]


def only(name: str = "reports/samples") -> Mismatch:
    """The one mismatch that there is."""
    (mismatch,) = trace(name).mismatches
    return mismatch


def kinds(name: str = "reports/samples") -> set[tuple[str, str | None]]:
    return {(mismatch.kind, mismatch.stage) for mismatch in trace(name).mismatches}


def set_param(project: Project, section: str, key: str, value: object) -> None:
    yaml = YAML()
    params = yaml.load(project.folder / "params.yaml")
    params[section][key] = value
    yaml.dump(params, project.folder / "params.yaml")


@pytest.mark.slow
def test_an_output_that_differs(project: Project) -> None:
    flip(project.folder / "models/gpt/model.safetensors")
    found = next(mismatch for mismatch in trace("reports/samples").mismatches if mismatch.kind == "output-changed")
    assert "models/gpt differs: dvc.lock has " in found.text
    assert "(1 of 4 files: model.safetensors)" in found.text
    assert found.remedy == "rm -r models/gpt && dvc checkout models/gpt"
    assert not trace("reports/samples", quick=True).mismatches, "the sizes are the same"
    mend(project, found.remedy)
    assert not trace("reports/samples").mismatches


@pytest.mark.slow
def test_an_output_that_is_gone(project: Project) -> None:
    shutil.rmtree(project.folder / "data/documents")
    found = only()
    assert (found.kind, found.path) == ("output-missing", "data/documents")
    mend(project, found.remedy)
    assert not trace("reports/samples").mismatches
    project.run("lmcore", "trace", "reports/samples")


def test_a_report_that_git_keeps(project: Project) -> None:
    path = project.folder / "reports/metrics/train.json"
    path.write_text("{}")
    found = only()
    assert (found.kind, found.remedy) == ("output-changed", "git checkout HEAD -- reports/metrics/train.json")
    mend(project, found.remedy)
    assert not trace("reports/samples").mismatches
    assert "git checkout HEAD" in str(found)


@pytest.mark.slow
def test_code_that_changed(project: Project) -> None:
    path = project.folder / "lmcore/prepare/split.py"
    path.write_text(path.read_text() + "\n# another\n")
    found = only()
    assert (found.kind, found.stage) == ("code", "prepare")
    assert "code of prepare is not what it ran with: lmcore/prepare" in found.text
    assert not trace("data/raw").mismatches
    mend(project, found.remedy)  # it runs again, and gives the same
    assert kinds() == {("uncommitted", "prepare")}
    project.commit("changed")
    assert not trace("reports/samples").mismatches


@pytest.mark.slow
def test_parameters_that_changed(project: Project) -> None:
    set_param(project, "sample", "temperature", 1.25)
    found = only()
    assert (found.kind, found.stage) == ("params", "sample")
    assert found.text.endswith("sample.temperature 0.7 -> 1.25")
    assert not trace("models/gpt").mismatches, "no other stage depends on it"
    assert "MEND" in project.run("lmcore", "trace", "reports/samples", fails=True)
    mend(project, found.remedy)
    assert kinds() == {("uncommitted", "sample")}
    mend(project, "git commit --all --quiet --message=warmer")
    assert not trace("reports/samples").mismatches


def test_a_parameter_that_is_gone(project: Project) -> None:
    yaml = YAML()
    params = yaml.load(project.folder / "params.yaml")
    del params["train"]["seed"]
    yaml.dump(params, project.folder / "params.yaml")
    assert only().text.endswith("train.seed 1 -> empty")


@pytest.mark.slow
def test_an_input_that_was_made_anew_since(project: Project) -> None:
    set_param(project, "prepare", "validation_fraction", 0.4)
    project.run("dvc", "repro", "--single-item", "prepare")
    project.commit("split otherwise")
    found = {(mismatch.kind, mismatch.stage): mismatch for mismatch in trace("reports/samples").mismatches}
    assert found.keys() == {("input", "encode"), ("input", "train_tokenizer")}
    assert "encode read data/documents " in found["input", "encode"].text
    assert "and prepare has made " in found["input", "encode"].text
    assert "train_tokenizer read data/documents/train " in found["input", "train_tokenizer"].text, "a part of an output"
    assert not trace("data/documents").mismatches


def test_an_input_that_no_stage_makes(project: Project) -> None:
    (project.folder / "data/own/mine.txt").write_text("mine")
    assert kinds("data/raw") == {("input", "download")}


def test_a_stage_that_is_described_otherwise(project: Project) -> None:
    path = project.folder / "dvc.yaml"
    text = path.read_text()
    path.write_text(text.replace("cmd: python -m stages.encode", "cmd: python -u -m stages.encode"))
    assert "gives encode another command than it ran with" in only().text
    path.write_text(text.replace("      - lmcore/prepare\n", "", 1))
    assert "gives prepare other dependencies than it ran with: lmcore/prepare" in only().text
    path.write_text(text.replace("      - reports/samples\n", "      - reports/samples\n      - reports/more\n"))
    assert "gives sample other outputs than it ran with: reports/more" in only().text
    path.write_text(text.replace("  sample:\n", "  samples:\n"))
    found = only()
    assert (found.text, found.remedy) == ("dvc.yaml has no stage sample any more", "git checkout dvc.yaml")


def test_results_that_no_commit_has(project: Project) -> None:
    project.run("git", "update-ref", "-d", "HEAD")
    assert not kinds(), "without any commit that is a note"
    project.run("git", "reset", "--quiet")
    project.run("git", "add", "dvc.yaml", "params.yaml", "dvc.lock")
    project.run("git", "commit", "--quiet", "--message=the code is forgotten")
    found = [mismatch for mismatch in trace("data/raw").mismatches if mismatch.kind == "uncommitted"]
    assert "no commit has both what download made and what it was made with: lmcore/" in found[0].text
    project.run("git", "add", "lmcore", "stages")  # a commit later
    project.run("git", "commit", "--quiet", "--message=the code")
    assert not trace("data/raw").mismatches


Edit = Callable[[dict[str, object]], object]


def edit_json(project: Project, path: str, edit: Edit) -> None:
    """Change a record, and have DVC take it for what the stage made."""
    values = read_json(project.folder / path, "")
    edit(values)
    (project.folder / path).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("path", "stage", "edit", "kind", "words"),
    [
        (
            "models/gpt/lineage.json",
            "train",
            lambda lineage: lineage["tokens"].update(train="0" * 64),
            "tokens",
            "models/gpt was trained with train tokens 000000000000, data/tokens is ",
        ),
        pytest.param(
            "models/gpt/lineage.json",
            "train",
            lambda lineage: lineage.update(tokenizer="1" * 64),
            "tokenizer",
            "models/gpt was trained with tokenizer 111111111111, models/tokenizer/tokenizer.json is ",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "models/gpt/lineage.json",
            "train",
            lambda lineage: lineage["params"]["train"].update(seed=9),
            "lineage",
            "has other parameters than dvc.lock (train.seed 9 not 1)",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "data/tokens/manifest.json",
            "encode",
            lambda manifest: manifest.update(tokenizer="2" * 64),
            "tokenizer",
            "data/tokens was made by tokenizer 222222222222, models/tokenizer is ",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "models/gpt/lineage.json",
            "train",
            lambda lineage: lineage.update(run_key="3" * 16),
            "lineage",
            "names run 3333333333333333, what its lineage.json describes is ",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_records_that_contradict_each_other(
    project: Project, path: str, stage: str, edit: Edit, kind: str, words: str
) -> None:
    edit_json(project, path, edit)
    project.run("dvc", "commit", "--force", stage)
    found = [mismatch for mismatch in trace("models/export").mismatches if mismatch.kind == kind]
    assert any(words in mismatch.text for mismatch in found), found
    assert {mismatch.remedy for mismatch in found} == {f"dvc repro --force --single-item {stage}, then dvc repro"}


def test_a_card_of_another_model(project: Project) -> None:
    path = project.folder / "models/export/README.md"
    key = read_json(project.folder / "models/gpt/lineage.json", "")["run_key"]
    path.write_text(path.read_text().replace(key, "4444444444444444"))
    assert ("export", "export") in kinds("models/export")


def test_ones_own_text_that_changed(project: Project) -> None:
    (project.folder / "corpus/07.txt").write_text("other")
    found = only()
    assert (found.kind, found.text) == ("source", "1 files of your text have changed since download: 07.txt")
    assert found.remedy == "dvc repro --force download, then dvc repro"


def test_a_sample_that_was_edited(project: Project) -> None:
    path = project.folder / "reports/samples/samples.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0].replace('"seed": ', '"seed": 1'), *lines[1:]]) + "\n")
    assert kinds("reports/samples/samples.jsonl:1") == {("output-changed", "sample"), ("sample", "sample")}
    assert kinds("reports/samples/samples.jsonl:2") == {("output-changed", "sample")}


def test_a_run_that_is_not_what_its_name_says(project: Project) -> None:
    key = read_json(project.folder / "models/gpt/lineage.json", "")["run_key"]
    edit_json(project, f"runs/{key}/identity.json", lambda identity: identity.update(tokenizer="0"))
    assert kinds() == {("run", "train")}


def test_mlflow_that_says_otherwise(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    key = read_json(project.folder / "models/gpt/lineage.json", "")["run_key"]
    run_id = read_json(project.folder / "runs" / key / "mlflow.json", "")["run_id"]
    assert not trace(key).mismatches
    client = connect()
    client.set_tag(run_id, "lmcore.run_key", "0" * 16)
    client.log_metric(run_id, "val_loss", 1.0, step=100)
    client.set_terminated(run_id, "KILLED")
    texts = " ".join(mismatch.text for mismatch in trace(key).mismatches)
    assert "is killed, not finished" in texts
    assert f"is of run {'0' * 16}, the model of {key}" in texts
    assert "ended with val_loss 1.000000, the model with " in texts
    edit_json(project, "models/gpt/lineage.json", lambda lineage: lineage["params"]["train"].update(seed=2))
    edit_json(project, "models/gpt/lineage.json", lambda lineage: lineage["tokens"].update(train="5" * 64))
    texts = " ".join(mismatch.text for mismatch in trace(key).mismatches if mismatch.kind == "mlflow")
    assert "has other parameters than the model (train.seed 1 not 2)" in texts
    assert "was fed tokens.train " in texts
