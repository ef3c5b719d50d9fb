"""The sample stage from its folders to its page, lines and metrics."""

import json
from pathlib import Path

import pytest
from imports import ROOT
from tiny import TINY_MODEL, tokenizer_params

from lmcore.errors import ArtifactError, ParameterError
from lmcore.model.gpt import GPT
from lmcore.model.save_load import save_model
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer
from stages import sample

PARAMS = """\
sample:
  prompts:
  - ""
  - "Zażółć 🙂 <|endoftext|>"
  samples_per_prompt: 2
  max_new_tokens: 10
  temperature: 0.9
  top_k:
  top_p:
  min_p:
  repetition_penalty: 1.0
  stop:
  draft_tokens:
  decoder: plain
  weights: float32
  seed: 7
"""
# The hardware section and the profiles of the project itself.
MACHINE = "hardware:" + (ROOT / "params.yaml").read_text(encoding="utf-8").partition("\nhardware:")[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the stage reads, as the working directory."""
    monkeypatch.chdir(tmp_path)
    tokenizer = train_tokenizer(tokenizer_params("char"), [["abc abd"]])
    save_model(Path("models/gpt"), GPT(TINY_MODEL, tokenizer.vocab_size), lineage={})
    tokenizer.save(Path("models/gpt"))
    Path("params.yaml").write_text(PARAMS + MACHINE, encoding="utf-8")
    return tmp_path


def read_outputs(project: Path) -> list[bytes]:
    names = ["samples/samples.md", "samples/samples.jsonl", "metrics/sample.json"]
    return [(project / "reports" / name).read_bytes() for name in names]


def test_page_lines_and_metrics(project: Path) -> None:
    sample.main()
    page, lines, metrics = read_outputs(project)
    records = [json.loads(line) for line in lines.splitlines()]
    assert [(record["prompt"], record["sample"]) for record in records] == [
        ("", 1),
        ("", 2),
        ("Zażółć 🙂 <|endoftext|>", 1),
        ("Zażółć 🙂 <|endoftext|>", 2),
    ]
    assert all(record["text"] in page.decode() for record in records)
    assert json.loads(metrics)["samples"] == 4
    assert json.loads(metrics)["tokens"] == sum(record["tokens"] for record in records)
    sample.main()
    assert read_outputs(project) == [page, lines, metrics]


def test_a_mistake_leaves_the_old_samples(project: Path) -> None:
    sample.main()
    before = read_outputs(project)
    (project / "params.yaml").write_text(
        PARAMS.replace("temperature: 0.9", "temperature: -1") + MACHINE, encoding="utf-8"
    )
    with pytest.raises(ParameterError, match=r"sample.temperature=-1: must be greater than or equal to 0"):
        sample.main()
    assert read_outputs(project) == before


def test_a_missing_model_is_named(project: Path) -> None:
    (project / "models/gpt/config.json").unlink()
    with pytest.raises(ArtifactError, match=r"models/gpt/config.json does not exist: run the train stage"):
        sample.main()
