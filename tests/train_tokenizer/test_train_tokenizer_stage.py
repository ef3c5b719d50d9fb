"""The stage as DVC calls it: the tokenizer, its metrics and its page, the same bytes whatever the machine's order."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from imports import ROOT
from tiny import make_texts

from lmcore.commands.edit_params import rewrite_file
from lmcore.prepare.documents import Document, DocumentWriter
from lmcore.tokenizer.load import load_tokenizer

RESERVED = ["<|user|>", "<|assistant|>"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Prepared documents and params.yaml."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    values = {"vocab_size": 400, "special_tokens": RESERVED, "max_bytes": 8000}
    rewrite_file(tmp_path / "params.yaml", {"train_tokenizer": values})
    with DocumentWriter(tmp_path / "data/documents/train", "own") as writer:
        writer.write([Document.of(f"{number}.txt", text) for number, text in enumerate(make_texts(60, seed=1))])
    return tmp_path


def run(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stages.train_tokenizer"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_it_writes_is_the_same_every_time(project: Path) -> None:
    outputs = []
    for seed in ("1", "2"):
        result = run(project, PYTHONHASHSEED=seed, RAYON_NUM_THREADS=seed)
        assert (result.returncode, result.stderr) == (0, "")
        files = sorted(path for folder in ("models", "reports") for path in (project / folder).rglob("*.*"))
        outputs.append({str(path.relative_to(project)): path.read_bytes() for path in files})
    assert outputs[0] == outputs[1]
    assert list(outputs[0]) == [
        "models/tokenizer/tokenizer.json",
        "reports/metrics/train_tokenizer.json",
        "reports/tokenizer.md",
    ]
    tokenizer = load_tokenizer(project / "models/tokenizer")
    assert list(tokenizer.special_tokens) == ["<|endoftext|>", *RESERVED]
    metrics = json.loads(outputs[0]["reports/metrics/train_tokenizer.json"])
    page = outputs[0]["reports/tokenizer.md"].decode()
    assert f"{tokenizer.fingerprint}" in page
    assert f"| bytes per token | {metrics['bytes_per_token']:.4f}, " in page
    assert metrics["vocab_size"] == tokenizer.vocab_size <= 400


def test_a_wrong_parameter_is_one_line_and_nothing_is_written(project: Path) -> None:
    rewrite_file(project / "params.yaml", {"train_tokenizer": {"digits": 4}})
    result = run(project)
    assert result.returncode == 1
    assert result.stderr == "error: train_tokenizer.digits=4: must be 1, 2 or 3 for kind bpe\n"
    assert not (project / "models").exists()
    assert not (project / "reports").exists()
