"""Every benchmark runs at a tiny size and prints its rows; the figures in them are not looked at."""

import importlib
import io
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from imports import ROOT
from peers import write_nanochat, write_nanogpt
from tiny import TINY_MODEL, make_texts, sharpen

from benchmarks import __main__ as listing
from benchmarks import timing, turns
from benchmarks.corpus import encode_texts
from lmcore.errors import ParameterError
from lmcore.model.gpt import GPT
from lmcore.model.params import DiffusionParams
from lmcore.model.save_load import save_model
from lmcore.tokenizer.byte import ByteTokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, lm-evaluation-harness and MLflow


@dataclass(frozen=True)
class Smoke:
    """Arguments of a tiny run, with `places` in braces, and patterns of the lines that it prints."""

    arguments: str
    rows: tuple[str, ...]
    needs: tuple[str, ...] = ()  # modules of extras
    apart: str = ""  # further arguments of the run in processes of its own
    only_apart: str = ""  # the reason


TIMES = r"\d+ ms a step, [\d,]+ tokens/s"
SMOKE = {
    "batches": Smoke(
        "--tokens 400000 --sparse 2000000 --shard 100000 --seconds 0.01",
        (*(rf"{way}( +\d+){{5}}" for way in ("stream", "document", "mixture")), r"mixture( +[\d.-]+){4}"),
    ),
    "choice": Smoke(
        "--items {items} --tokenizer {model} --shapes tiny --count 2 --rounds 1",
        (r"tiny( +[\d.]+){3}   accuracy [\d.]+, accuracy_normalised [\d.]+",),
        needs=("lm_eval", "transformers"),
    ),
    "decode": Smoke(
        "--nanogpt {nanogpt} --shape tiny --tokens 10 --rounds 1 "
        "--sides nanoGPT transformers lmcore lmcore,int8 lmcore,4",
        (r"the same text: nanoGPT, transformers, lmcore.*, lmcore,4", r"lmcore,4 +[\d,]+ tokens/s .* x transformers.*"),
        needs=("transformers",),
        apart="--sides nanoGPT transformers lmcore lmcore,compiled lmcore,int8 lmcore,4",
    ),
    "document_mask": Smoke(
        "--shape tiny --context 16 --ways eager --rounds 1 --steps 1",
        (r"eager, with the mask: \d+ ms a step, \d+ MB", r"eager: the mask takes [-+][\d.]+% time"),
        apart="--ways eager compiled",
    ),
    "encode": Smoke(
        "--files 25 --rounds 1",
        tuple(rf"{name}( +[\d.]+){{4}}" for name in ("tokenizers", "bare tiktoken", "lmcore, to shards")),
    ),
    "masks": Smoke(
        "--shape tiny --eager --rounds 1 --steps 1",
        tuple(rf"block_fraction {part}: \d+ ms, \d+ MB, [\d.]+ x .*" for part in (r"0\.0", r"0\.25", r"0\.5")),
    ),
    "models": Smoke(
        "--layers 1 --width 64 --entries 400 --rounds 1",
        (r"import of ours +[\d.]+ s, .*", r"export with GGUF q8_0 +[\d.]+ s, .*"),
        needs=("transformers", "gguf"),
    ),
    "nanochat": Smoke(
        "--nanochat {nanochat} --shape tiny --eager --rounds 1 --steps 1",
        (f"nanochat: {TIMES}", f"lmcore: {TIMES}", r"lmcore is [\d.]+ x"),
    ),
    "nanogpt": Smoke(
        "--nanogpt {nanogpt} --text {text} --shape tiny --batch 2 --eager --rounds 1 --steps 1",
        (
            r"20 steps .* differ by at most [\d.]+e-\d+",
            f"nanoGPT: {TIMES}.*",
            f"lmcore: {TIMES}.*",
            r"lmcore is [\d.]+ x",
        ),
    ),
    "prepare": Smoke(
        "--megabytes 1 --growth 1 --processes 1 --rounds 1",
        (r"text +1( +[\d.]+){5}", r"jsonl +1( +[\d.]+){5}", r"1 MB, one process: \d+ MB at the peak"),
        apart="--processes 1 2",
    ),
    "processes": Smoke(
        "--shape tiny --rounds 1 --sides 'one process'",
        (r"one process: \d+ ms a step, 1\.00 x .*",),
        apart="--sides 'one process' 'two, replicate' 'two, full'",
    ),
    "serve": Smoke(
        "--shape tiny --clients 1 2 --requests 1 --tokens 4",
        (r" +1 clients: 1 answers, .*", r" +2 clients: 2 answers, .*"),
        only_apart="a server",
    ),
    "shakespeare": Smoke(
        "--text {text} --nanogpt {nanogpt} --size quick --steps 2 "
        "--set train.warmup_steps=1 model.n_layers=1 model.d_model=24",
        (r"seed 1: validation [\d.]+ after .*; 2 steps, .*", r"nanoGPT's CPU recipe: validation 1\.9 after .*"),
    ),
    "tidar": Smoke(
        "{model} {tokens} --texts 2 --prompt 8 --new 8 --rounds 1",
        tuple(rf"{side} +[\d,]+ tokens/s .*" for side in ("plain", "prompt lookup", "tidar", "tidar-one-forward")),
    ),
    "tracking": Smoke(
        "--rounds 1 --seconds 0.2 --threads 1 --sides TensorBoard",
        tuple(rf"{side} +[\d.]+ ms .*" for side in ("no tracker", "TensorBoard")),
        needs=("tensorboard",),
        apart="--sides 'MLflow, SQLite' 'MLflow, server' TensorBoard",
    ),
    "train_step": Smoke(
        "--eager --rounds 1 --tracker-rounds 1 --tokens {tokens} --tokenizer {model}",
        (r" *[-+][\d.]+%  the loop, its loader and log", r" *[-+][\d.]+%  MLflow's start and end, .*"),
    ),
    "weights": Smoke(
        "{model} {tokens}", tuple(rf"{kind} +[\d.]+ nats per token, .*" for kind in ("float32", "bfloat16", "int8"))
    ),
}
NAMES = list(listing.list_benchmarks())  # one without smoke arguments fails


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the files and folders that arguments name: a text, a model, its tokens, items, checkouts of peers."""
    folder = tmp_path_factory.mktemp("benchmarks")
    texts = make_texts(60, 1)
    (folder / "text.txt").write_text("".join(texts))
    question = {"ctx": "the cat sat", "endings": ["on a mat", "far away", "small", "the house"], "label": 0}
    (folder / "items.jsonl").write_text(f"{json.dumps(question)}\n" * 3)
    tokenizer = ByteTokenizer.create()
    params = TINY_MODEL.model_copy(update={"context_length": 256, "diffusion": DiffusionParams(block_size=4)})
    model = GPT(params, tokenizer.vocab_size, seed=1, end_of_text=tokenizer.end_of_text)
    save_model(folder / "model", sharpen(model), {})
    tokenizer.save(folder / "model")
    encode_texts({"train": [texts], "validation": [make_texts(5, 2)]}, tokenizer, folder, shard_tokens=10_000)
    return {
        "text": folder / "text.txt",
        "items": folder / "items.jsonl",
        "model": folder / "model",
        "tokens": folder / "tokens",
        "nanogpt": write_nanogpt(folder / "nanoGPT"),
        "nanochat": write_nanochat(folder / "nanochat"),
    }


@pytest.fixture
def process_state() -> Iterator[None]:
    """Put back the state of the process that benchmarks change for themselves."""
    cores, threads, place = os.sched_getaffinity(0), torch.get_num_threads(), Path.cwd()
    with mock.patch.dict(os.environ), mock.patch.object(sys, "path", list(sys.path)):
        os.chdir(ROOT)
        yield
    os.chdir(place)
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cores)


class SideHere:
    """A side of `turns.time_in_turns` in this process, where torch is imported already."""

    def __init__(self, build: turns.Build) -> None:
        self.step, self.draw = pickle.loads(pickle.dumps(build))()

    def send(self, steps: int) -> None:
        for _ in range(steps):
            self.step(self.draw())

    def recv(self) -> tuple[float, int]:
        return 0.001, 1_000_000

    def close(self) -> None:
        pass


def run_here(command: list[str], env: dict[str, str], **_: object) -> SimpleNamespace:
    """Do `subprocess.run` of `python -m benchmarks.NAME` in this process."""
    program, option, module, *arguments = command
    assert (program, option) == (sys.executable, "-m")
    with mock.patch.dict(os.environ, env), redirect_stdout(io.StringIO()) as output:
        importlib.import_module(module).main(arguments)
    return SimpleNamespace(stdout=output.getvalue())


@pytest.mark.parametrize("name", [name for name in NAMES if not (name in SMOKE and SMOKE[name].only_apart)])
@pytest.mark.usefixtures("process_state")
def test_it_runs(
    name: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(turns, "_start", SideHere)
    monkeypatch.setattr(timing, "subprocess", SimpleNamespace(run=run_here, PIPE=subprocess.PIPE))
    smoke = find_smoke(name)
    importlib.import_module(f"benchmarks.{name}").main(shlex.split(smoke.arguments.format(**places)))
    check_rows(smoke, capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_processes_of_its_own(name: str, places: dict[str, Path]) -> None:
    smoke = find_smoke(name)
    words = shlex.split(f"{smoke.arguments} {smoke.apart}".format(**places))
    command = [sys.executable, "-m", f"benchmarks.{name}", *words]
    finished = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    check_rows(smoke, finished.stdout)


def find_smoke(name: str) -> Smoke:
    """Return a benchmark's arguments; skip the test where an extra is not installed."""
    for module in SMOKE[name].needs:
        pytest.importorskip(module, exc_type=ImportError)
    return SMOKE[name]


def check_rows(smoke: Smoke, output: str) -> None:
    absent = [row for row in smoke.rows if not re.search(f"^{row}$", output, re.M)]
    assert not absent, output


def test_each_has_smoke_arguments() -> None:
    assert listing.list_benchmarks().keys() == SMOKE.keys(), "enter a new benchmark, and how to run it tiny, in SMOKE"


def test_each_is_quoted_with_options_that_it_has() -> None:
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    quoted = set()
    for path in documents:
        for name, options in re.findall(r"python -m benchmarks\.(\w+)([^`#\n]*)", path.read_text(encoding="utf-8")):
            quoted.add(name)
            source = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
            unknown = [option for option in re.findall(r"--[\w-]+", options) if f'"{option}"' not in source]
            assert not unknown, f"{path.name}: benchmarks.{name} has no {unknown}"
    assert quoted == listing.list_benchmarks().keys(), "a document quotes each benchmark, or it is deleted"


def test_listing_has_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    listing.main([])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines == listing.list_benchmarks()
    assert lines["weights"] == "Validation loss of a trained model with each type of weights: float32, bfloat16, int8."
    assert not [line for line in lines.values() if re.match("(What|Which|Whether|Who|Where|How) ", line)]


def test_listing_imports_no_benchmark() -> None:
    program = "import sys; from benchmarks.__main__ import main; main([]); print('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert finished.stdout.splitlines()[-1] == "False"


def test_a_name_runs_that_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        listing.main(["weights", "--help"])
    assert "python -m benchmarks.weights models/gpt data/tokens" in capsys.readouterr().out


def test_a_wrong_name_is_told_the_nearest() -> None:
    with pytest.raises(ParameterError, match=r"^benchmark 'nanogtp': must be one .*, did you mean nanogpt\?$"):
        listing.run_benchmark("nanogtp", [])
    with pytest.raises(ParameterError, match=r"^benchmark 'xyz': must be one .*, known are batches, .*weights$"):
        listing.run_benchmark("xyz", [])
    with pytest.raises(SystemExit, match="did you mean nanogpt"):
        listing.main(["nanogtp"])
