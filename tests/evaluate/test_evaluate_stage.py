"""The evaluate stage from its folders to its metrics."""

import gzip
import hashlib
import json
import lzma
from pathlib import Path

import pytest
from imports import ROOT
from tiny import TINY_MODEL, encode_texts, tokenizer_params

from lmcore.errors import ParameterError
from lmcore.model.gpt import GPT
from lmcore.model.save_load import save_model
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer
from stages import evaluate

DOCUMENTS = ["one day, a näive cat " * 40, "sat on the 日本 mat " * 30]
# The hardware section and the profiles of the project itself.
MACHINE = "hardware:" + (ROOT / "params.yaml").read_text(encoding="utf-8").partition("\nhardware:")[2]
TEXT = "".join(DOCUMENTS).encode()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the stage reads, as the working directory."""
    monkeypatch.chdir(tmp_path)
    tokenizer = train_tokenizer(tokenizer_params("bpe", vocab_size=280), [DOCUMENTS])
    save_model(Path("models/gpt"), GPT(TINY_MODEL, tokenizer.vocab_size), lineage={})
    tokenizer.save(Path("models/gpt"))
    splits = {"train": [["x"]], "validation": [DOCUMENTS]}
    encode_texts(1000, splits, tokenizer, Path("data/tokens"))
    Path("params.yaml").write_text("evaluate:\n  max_tokens:\n  suites:\n  max_items:\n" + MACHINE)
    return tmp_path


def test_metrics_of_the_whole_split(project: Path) -> None:
    evaluate.main()
    path = project / "reports/metrics/evaluate.json"
    metrics = json.loads(path.read_text())
    assert list(metrics) == ["val_loss", "perplexity", "bits_per_byte", "tokens", "bytes", "baselines"]
    assert metrics["bytes"] == len(TEXT)
    assert metrics["val_loss"] == pytest.approx(5.63, abs=0.1)  # untrained: about log(280)
    assert list(metrics["baselines"]) == ["gzip", "xz", "zstd", "ngram"]
    assert {name: metrics["baselines"][name] for name in ("gzip", "xz")} == {
        "gzip": round(8 * len(gzip.compress(TEXT, 9)) / len(TEXT), 6),
        "xz": round(8 * len(lzma.compress(TEXT, preset=9)) / len(TEXT), 6),
    }
    curve = project / "reports/plots/loss_by_position.csv"
    assert curve.read_text().startswith("position,loss,tokens\n1,")
    first = path.read_bytes(), curve.read_bytes()
    evaluate.main()
    assert (path.read_bytes(), curve.read_bytes()) == first


def test_metrics_of_a_part(project: Path) -> None:
    (project / "params.yaml").write_text("evaluate:\n  max_tokens: 70\n  suites:\n  max_items:\n" + MACHINE)
    evaluate.main()
    metrics = json.loads((project / "reports/metrics/evaluate.json").read_text())
    assert metrics["tokens"] == 64  # four windows of 16
    assert metrics["bytes"] < len(TEXT)


def test_benchmarks_beside_it(project: Path) -> None:
    """Of one's own file; the loss is the same as without, and a missing file ends the stage before any work."""
    evaluate.main()
    without = json.loads((project / "reports/metrics/evaluate.json").read_text())
    items = [{"context": "one day", "choices": ["a cat", "the mat"], "gold": at % 2} for at in range(5)]
    (project / "own.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    section = "evaluate:\n  max_tokens:\n  suites:\n    - own.jsonl\n  max_items: 3\n" + MACHINE
    (project / "params.yaml").write_text(section)
    evaluate.main()
    metrics = json.loads((project / "reports/metrics/evaluate.json").read_text())
    own = metrics.pop("suites")["own"]
    assert metrics == without
    assert own["items"] == 3
    assert own["accuracy"] in (1 / 3, 2 / 3)
    assert own["sha256"] == hashlib.sha256((project / "own.jsonl").read_bytes()).hexdigest()
    (project / "own.jsonl").unlink()
    (project / "models/gpt/model.safetensors").unlink()
    with pytest.raises(ParameterError, match=r"own.jsonl is no file"):
        evaluate.main()
