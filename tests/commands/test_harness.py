"""Our model in lm-evaluation-harness against its own `hf` model on our exported folder; local tasks, no network."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from imports import ROOT
from tiny import GPT2_MODEL, TINY_MODEL, make_texts, tokenizer_params

from lmcore.errors import DataError, ParameterError
from lmcore.evaluate.benchmarks import BenchmarkFile
from lmcore.evaluate.loglikelihood import encode_pair
from lmcore.evaluate.multiple_choice import measure_benchmark
from lmcore.export.hugging_face import export_model
from lmcore.export.params import ExportParams
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.model.save_load import save_model
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs are many
WHOLE = {"context_length": 64, "d_ff": 64}
MODELS = {"Qwen3": TINY_MODEL.model_copy(update=WHOLE), "GPT-2": GPT2_MODEL.model_copy(update=WHOLE)}
TASKS = {
    "own_choice": """
task: own_choice
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "own_words": """
task: own_words
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
""",
}


@pytest.fixture(scope="module", params=MODELS)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Our model folder and the exported one."""
    place = tmp_path_factory.mktemp("model")
    build(MODELS[request.param], place / "gpt")
    export_model(
        ExportParams(name="tiny", dtype="float32", gguf=None),
        place / "gpt",
        place / "export",
        corpus={},
        figures={"evaluate": {}},
    )
    return place / "gpt", place / "export"


def build(params: ModelParams, folder: Path) -> None:
    tokenizer = train_tokenizer(tokenizer_params("bpe", vocab_size=320), [make_texts(50, 1)])
    model, generator = GPT(params, tokenizer.vocab_size, seed=3), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    save_model(folder, model, lineage={})
    tokenizer.save(folder)


@pytest.fixture(scope="module")
def models(folders: tuple[Path, Path]) -> tuple[Any, Any]:
    # Here and below, not above: whoever collects tests would wait seconds for lm-evaluation-harness.
    from lm_eval.models.huggingface import HFLM

    from lmcore.commands.harness import HarnessModel

    ours, theirs = folders
    return HarnessModel(ours, batch_size=5), HFLM(str(theirs), backend="causal", device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks as .yaml files beside their .jsonl files."""
    folder = tmp_path_factory.mktemp("tasks")
    source, texts = random.Random(7), make_texts(400, 8)
    items = [
        {
            "context": texts[at][: source.randint(5, 180)],
            "choices": [source.choice(texts)[: source.randint(3, 60)] for _ in range(4)],
            "gold": source.randrange(4),
        }
        for at in range(60)
    ]
    words = [{"text": text[: source.randint(20, 100)].rstrip()} for text in texts[:40]]
    for name, records in (("own_choice", items), ("own_words", words)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (folder / f"{name}.yaml").write_text(TASKS[name] % (folder / f"{name}.jsonl"))
    return folder


def ask(model: Any, kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    requests = [Instance(kind, {}, one, at) for at, one in enumerate(arguments)]
    answers: list[Any] = getattr(model, kind)(requests)
    return answers


def evaluate(model: Any, tasks: Path) -> dict[str, dict[str, float]]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        model,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=10,
        log_samples=False,
    )
    assert results is not None
    figures: dict[str, dict[str, float]] = results["results"]
    return figures


def test_same_figures_three_ways(models: tuple[Any, Any], tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-evaluation-harness with its model and with ours, and the evaluate stage's own figures."""
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "DISABLE_MULTIPROC"):
        monkeypatch.setenv(name, "1")
    ours, theirs = (evaluate(model, tasks) for model in models)
    for task, metrics in {"own_choice": ["acc", "acc_norm"], "own_words": ["acc"]}.items():
        for metric in metrics:
            assert ours[task][f"{metric},none"] == theirs[task][f"{metric},none"]
            assert ours[task][f"{metric}_stderr,none"] == theirs[task][f"{metric}_stderr,none"]
    assert ours["own_words"]["perplexity,none"] == pytest.approx(theirs["own_words"]["perplexity,none"], rel=1e-5)
    model, tokenizer = models[0].model, models[0].text_tokenizer
    files = [BenchmarkFile(task, tasks / f"{task}.jsonl", "") for task in TASKS]
    stage = {file.name: measure_benchmark(model, tokenizer, file, None) for file in files}
    for task, pairs in {
        "own_choice": [("acc", "accuracy"), ("acc_norm", "accuracy_normalised")],
        "own_words": [("acc", "accuracy")],
    }.items():
        for their_name, name in pairs:
            assert stage[task][name] == theirs[task][f"{their_name},none"]
            assert stage[task][f"{name}_stderr"] == pytest.approx(theirs[task][f"{their_name}_stderr,none"], abs=1e-6)
    assert stage["own_words"]["perplexity"] == pytest.approx(theirs["own_words"]["perplexity,none"], rel=1e-5)
    assert stage["own_choice"]["skipped"] == stage["own_words"]["skipped"] == {}


def test_same_loglikelihoods(models: tuple[Any, Any]) -> None:
    """Of contexts that are empty, end with spaces, and are longer than the model's."""
    texts = make_texts(30, 11)
    source = random.Random(1)
    pairs = [(text[:cut], text[cut : cut + source.randint(1, 90)]) for text in texts for cut in (3, 4, 30, 150)]
    tokenizer = models[0].text_tokenizer
    pairs = [pair for pair in pairs if encode_pair(tokenizer, *pair).continuation]  # theirs takes no others
    pairs += [("", "the cat"), ("", "日本"), ("the cat  ", "sat"), ("the cat\n", " sat"), (texts[0] * 5, " the cat")]
    ours, theirs = (ask(model, "loglikelihood", *pairs) for model in models)
    for pair, (value, greedy), (expected, expected_greedy) in zip(pairs, ours, theirs, strict=True):
        assert value == pytest.approx(expected, abs=1e-4), pair
        assert greedy == expected_greedy, pair


def test_same_rolling_loglikelihoods(models: tuple[Any, Any]) -> None:
    texts = [("the cat sat",), ("".join(make_texts(5, 12)),), ("x",)]
    ours, theirs = (ask(model, "loglikelihood_rolling", *texts) for model in models)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ask(models[0], "loglikelihood_rolling", ("",)) == [0]


def test_same_texts(models: tuple[Any, Any]) -> None:
    """Greedy, with stop strings, of short prompts and of one that must be cut to leave room."""
    prompts = ["the cat", "a dog and", make_texts(1, 13)[0] * 3]
    settings: list[dict[str, Any]] = [
        {"until": ["\n"], "max_gen_toks": 12},
        {"until": [" s", "zzz"], "max_gen_toks": 30, "do_sample": False},
        {"until": [], "max_gen_toks": 20},
    ]
    asked = [(prompt, setting) for prompt in prompts for setting in settings]
    ours, theirs = (ask(model, "generate_until", *asked) for model in models)
    assert ours == theirs
    assert len(set("".join(ours))) > 10, "no model that repeats itself"


def test_what_cannot_be_done_is_said(models: tuple[Any, Any]) -> None:
    model = models[0]
    with pytest.raises(
        DataError, match=r"a continuation has \d+ tokens, and 1 to 64 can be scored, the model's context"
    ):
        ask(model, "loglikelihood", ("a", "日本" * 40))
    with pytest.raises(
        ParameterError, match=r"asks for num_beams, which decoding has not: leave it out; there are min_p"
    ):
        ask(model, "generate_until", ("a", {"num_beams": 2}))
    assert len(ask(model, "generate_until", ("a", {"max_gen_toks": 100}))) == 1, "more than its context"


@pytest.mark.slow
def test_the_command_prints_the_table(tmp_path: Path, tasks: Path) -> None:
    build(MODELS["Qwen3"], tmp_path / "gpt")
    command = [sys.executable, "-m", "lmcore", "harness", str(tmp_path / "gpt"), "own_choice"]
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--include", str(tasks), "--limit", "10"],
        cwd=ROOT,
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "|own_choice|" in done.stdout
    assert "acc_norm" in done.stdout


@pytest.mark.slow
def test_an_unknown_task_is_named(tmp_path: Path, tasks: Path) -> None:
    from lmcore.commands.harness import run_tasks

    with pytest.raises(ParameterError, match=r"own_chioce: no such task of lm-evaluation-harness, nor in "):
        list(run_tasks(tmp_path, ["own_chioce"], include=tasks, limit=None, device="cpu", batch_size=4))
