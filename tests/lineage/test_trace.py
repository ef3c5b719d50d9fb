"""`lmcore trace` on a real project: every way in leads to the bytes, with the hashes that are really there."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from damage import flip
from projects import Project, finished_once

from lmcore.errors import ArtifactError, ParameterError
from lmcore.files import read_json
from lmcore.lineage.report import describe_trace, render_trace
from lmcore.lineage.steps import Trace
from lmcore.lineage.trace import trace
from lmcore.params import read_params

pytestmark = [
    finished_once,
    pytest.mark.filterwarnings("ignore"),  # MLflow's and its libraries' own
]

CHAIN = ["train", "encode", "train_tokenizer", "prepare", "download"]


def stages(found: Trace) -> list[str]:
    return [step.stage for step in found.steps]


def lineage(project: Project) -> dict[str, object]:
    values: dict[str, object] = read_json(project.folder / "models/gpt/lineage.json", "")
    return values


def test_from_a_sample_back_to_the_bytes(project: Project) -> None:
    found = trace("reports/samples/samples.jsonl:3")
    assert stages(found) == ["sample", *CHAIN]
    assert not found.mismatches
    third = json.loads((project.folder / "reports/samples/samples.jsonl").read_text().splitlines()[2])
    sample = found.subject["sample"]
    assert {name: sample[name] for name in third} == third
    assert sample["settings"]["max_new_tokens"] == 8
    lock = read_params(project.folder / "dvc.lock")["stages"]
    for step in found.steps:
        locked = lock[step.stage]
        assert {part.path: part.md5 for part in step.outputs} == {out["path"]: out["md5"] for out in locked["outs"]}
        read = [*step.inputs, *step.code]
        assert {part.path: part.md5 for part in read} == {entry["path"]: entry["md5"] for entry in locked["deps"]}
        assert {part.state for part in (*read, *step.outputs)} == {"same"}
        assert step.commit is not None
        assert step.commit.subject == "results"
        assert step.commit.id in project.run("git", "log", "--format=%H")
    makers = {part.path: part.stage for step in found.steps for part in step.inputs}
    assert makers == {
        "models/gpt": "train",
        "data/tokens": "encode",
        "models/tokenizer": "train_tokenizer",
        "data/documents": "prepare",
        "data/documents/train": "prepare",
        "data/raw": "download",
        "data/own": None,
    }
    for file in found.records["corpus"]["files"]:
        content = (project.folder / "data/raw/files" / file["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    tokenizer = hashlib.sha256((project.folder / "models/tokenizer/tokenizer.json").read_bytes()).hexdigest()
    assert found.records["tokenizer"]["sha256"] == found.records["tokens"]["tokenizer"] == tokenizer
    assert found.records["tokens"]["fingerprints"] == lineage(project)["tokens"] == found.records["model"]["tokens"]
    assert found.run is not None
    assert found.run["key"] == lineage(project)["run_key"]
    assert found.run["checkpoints"] == [9, 12]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reports/metrics/evaluate.json", ["evaluate", *CHAIN]),
        ("reports/plots/loss_by_position.csv", ["evaluate", *CHAIN]),
        ("reports/tokenizer.md", ["train_tokenizer", "prepare", "download"]),
        ("models/export/config.json", ["export", "evaluate", *CHAIN]),
        ("models/gpt", CHAIN),
        ("data/tokens/manifest.json", ["encode", "train_tokenizer", "prepare", "download"]),
        ("data/documents/train", ["prepare", "download"]),
        ("data/raw", ["download"]),
        (".", ["export", "sample", "evaluate", *CHAIN]),
    ],
)
def test_every_artefact_is_a_beginning(project: Project, name: str, expected: list[str]) -> None:
    found = trace(name)
    assert stages(found) == expected
    assert not found.mismatches


def test_from_another_folder_and_by_a_whole_path(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder / "models")
    assert stages(trace("gpt")) == stages(trace("models/gpt")) == CHAIN
    monkeypatch.chdir("/")
    assert stages(trace(str(project.folder / "models/gpt/config.json"))) == CHAIN


@pytest.mark.slow
def test_the_command_writes_a_chain_or_json(project: Project) -> None:
    text = project.run("lmcore", "trace", "reports/samples/samples.jsonl:1")
    lines = text.splitlines()
    assert lines[0] == "reports/samples/samples.jsonl:1"
    assert "prompt     'the cat'" in lines[1]
    assert [line.split()[1] for line in lines if line.startswith("● ")] == ["sample", *CHAIN, "bytes"]
    assert lines[-1].startswith("ok    everything matches: bytes of ")
    assert max(map(len, lines)) <= 120
    values = json.loads(project.run("lmcore", "trace", "--json", "--quick", "reports/samples/samples.jsonl:1"))
    assert values["matches"] is True
    assert [step["stage"] for step in values["steps"]] == ["sample", *CHAIN]
    assert values["steps"][1]["outputs"][0]["path"] == "models/gpt"


def test_a_figure_and_a_file_of_the_corpus(project: Project) -> None:
    loss = trace("reports/metrics/evaluate.json:val_loss").subject["metrics"]
    assert loss == {"val_loss": project.metrics("evaluate")["val_loss"]}
    file = trace("data/raw/files/07.txt").subject["file"]
    assert file["sha256"] == hashlib.sha256((project.folder / "corpus/07.txt").read_bytes()).hexdigest()


def test_a_run_by_its_key_its_folder_and_in_mlflow(project: Project) -> None:
    key = str(lineage(project)["run_key"])
    run_id = read_json(project.folder / "runs" / key / "mlflow.json", "")["run_id"]
    for name in (key, f"runs/{key}", f"runs/{key}/metrics.jsonl", run_id, f"mlflow:{run_id}"):
        found = trace(name)
        assert (found.kind, stages(found)) == ("run", CHAIN)
        assert not found.mismatches
        assert found.run is not None
        assert found.run["mlflow"]["run_id"] == run_id
        assert found.run["mlflow"]["status"] == "finished"
    shutil.rmtree(project.folder / "runs")
    assert stages(trace(run_id)) == CHAIN


def test_a_commit_is_compared_with_what_is_here(project: Project) -> None:
    assert not trace("main").mismatches
    assert set(stages(trace("main"))) == set(read_params(project.folder / "dvc.lock")["stages"])
    with pytest.raises(ArtifactError, match=r"main~1 has no dvc\.lock: nothing is recorded there"):
        trace("main~1")


@pytest.mark.slow
def test_an_experiment_that_trains_another_model_on(project: Project) -> None:
    """One training for much: the origin, what befalls it, and the experiment and its run beside what is here."""
    shutil.copytree(project.folder / "models/gpt", project.folder / "base")
    project.commit("base")
    project.run("dvc", "exp", "run", "--name", "hot", "-S", "train.init_from=base", "train")
    other = str(lineage(project)["run_key"])
    here = trace("models/gpt")
    assert [mismatch.kind for mismatch in here.mismatches] == ["uncommitted"]
    (origin,) = here.records["origins"]
    assert origin["run_key"] == read_json(project.folder / "base/lineage.json", "")["run_key"]
    assert any("└─ began as a folder, weights " in line for line in render_trace(here))
    flip(project.folder / "base/model.safetensors")
    changed = {mismatch.kind: mismatch.text for mismatch in trace("models/gpt").mismatches}
    assert "models/gpt began as train.init_from=base with weights " in changed["origin"]
    shutil.rmtree(project.folder / "base")
    assert any(mismatch.text.endswith("and that is gone") for mismatch in trace("models/gpt").mismatches)

    project.run("git", "checkout", "--quiet", "--", ".")
    project.run("dvc", "checkout", "--quiet")
    assert lineage(project)["run_key"] != other
    found = trace("hot")
    assert found.commit is not None
    assert found.commit.experiment == "hot"
    (step,) = [step for step in found.steps if step.stage == "train"]
    assert step.params["train.init_from"] == "base"
    assert found.records["model"]["run_key"] == other, "from DVC's cache"
    told = {(mismatch.kind, mismatch.stage) for mismatch in found.mismatches}
    after = {("input", stage) for stage in ("evaluate", "sample", "export")}
    assert told == {("output-changed", "train"), ("params", "train"), ("export", "export"), *after}
    assert {mismatch.remedy for mismatch in found.mismatches} == {"dvc exp apply hot, then dvc repro"}

    run = trace(other)
    assert run.commit is not None
    assert (run.commit.experiment, stages(run)) == ("hot", CHAIN)

    shutil.rmtree(project.folder / ".dvc/cache")  # its parameters still say so
    run = trace(other)
    assert run.commit is not None
    assert run.commit.experiment == "hot"
    assert any("by its parameters" in note for note in run.notes)

    project.run("dvc", "exp", "remove", "hot")
    run = trace(other)
    assert [mismatch.kind for mismatch in run.mismatches] == ["run"]
    assert run.mismatches[0].remedy == "dvc exp run -S train.init_from=base"
    assert run.run is not None
    assert run.run["mlflow"]["name"] == "hot"


def test_a_clone_that_has_fetched_nothing(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project.run("git", "clone", "--quiet", str(project.folder), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    found = trace("models/gpt")
    assert stages(found) == CHAIN
    assert {mismatch.kind for mismatch in found.mismatches} == {"output-missing"}
    assert {mismatch.path for mismatch in found.mismatches} == {
        *("models/gpt", "models/tokenizer", "data/tokens", "data/documents", "data/raw"),
    }
    (mismatch,) = [mismatch for mismatch in found.mismatches if mismatch.stage == "train"]
    assert mismatch.remedy == "dvc repro train"


def test_without_a_lock(project: Project) -> None:
    (project.folder / "dvc.lock").unlink()
    assert not trace("main").mismatches, "a commit has its own"
    found = trace("models/gpt")
    assert found.kind == "copy", "what its own files say is left"
    key = lineage(project)["run_key"]
    assert found.notes == [
        "no dvc.lock near it records this folder: traced as far as its own files say",
        f"this project has its run: lmcore trace {key} goes on from there",
    ]
    assert stages(trace(str(key))) == CHAIN, "by the commit that has its model"
    with pytest.raises(ParameterError, match=r"there is no dvc\.lock, which records what made what: run dvc repro"):
        trace("data/raw")


def test_an_exported_folder_elsewhere_says_what_its_card_says(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.folder / "models/export", tmp_path / "sent")
    found = trace(str(tmp_path / "sent"))
    assert (found.kind, found.steps) == ("copy", [])
    assert found.records["card"]["run"] == lineage(project)["run_key"]
    assert any("no dvc.lock near it" in note for note in found.notes)
    assert any("lmcore trace models/gpt goes on from there" in note for note in found.notes)
    assert not found.mismatches


def test_a_models_folder_elsewhere_says_what_its_lineage_says(project: Project, tmp_path: Path) -> None:
    copy = tmp_path / "sent"
    shutil.copytree(project.folder / "models/gpt", copy)
    assert trace(str(copy / "model.safetensors")).records["model"]["run_key"] == lineage(project)["run_key"]
    (copy / "tokenizer.json").write_bytes(b"{}")
    values = {**lineage(project), "run_key": "0123456789abcdef"}
    (copy / "lineage.json").write_text(json.dumps(values))
    assert [mismatch.kind for mismatch in trace(str(copy)).mismatches] == ["lineage", "tokenizer"]
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    assert any("nothing leads further back" in note for note in trace(str(bare)).notes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reports/samples/samples.jsonl:99", r"samples.jsonl has 4 lines, not 99: name one from 1 to 4"),
        ("reports/samples/samples.jsonl:x", r"samples.jsonl:x: name a line by its number"),
        ("reports/metrics/evaluate.json:loss", r"evaluate.json has no loss; it has val_loss, "),
        ("reports/metrics/evalute.json", r"did you mean reports/metrics/evaluate.json"),
        ("lmcore/files.py", r"no stage made it, and download, .* read it: trace what they made, as data/raw"),
        ("README.md", r"no stage made it, and it is no model's folder; the pipeline made data/raw, "),
        ("mlflow:nothing", r"MLflow has no run of this id or name"),
        ("ffffffffffffffff", r"no file, run, experiment, commit or MLflow run is called so"),
    ],
)
def test_names_that_lead_nowhere(project: Project, name: str, message: str) -> None:
    with pytest.raises((ParameterError, ArtifactError), match=message):
        trace(name)
    assert project.status() == ""


@pytest.mark.slow
def test_without_git(project: Project) -> None:
    shutil.rmtree(project.folder / ".git")
    with pytest.raises(ArtifactError, match=r"DVC cannot open .* is not a git repository"):
        trace("models/gpt")
    project.run("dvc", "config", "core.no_scm", "true")
    found = trace("models/gpt")
    assert not found.mismatches
    assert found.notes == ["there is no git repository here, or no commit: who recorded what is not known"]
    assert any("NOT COMMITTED" in line for line in render_trace(found))
    assert describe_trace(found)["steps"][0]["commit"] is None
