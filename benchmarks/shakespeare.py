"""Validation loss and seconds of the recipe speedrun-cpu on tinyshakespeare, beside nanoGPT's CPU recipe.

    python -m benchmarks.shakespeare --text tinyshakespeare.txt --seeds 5
    python -m benchmarks.shakespeare --text tinyshakespeare.txt --nanogpt ../nanoGPT --size minute

Our side is the real train stage without DVC and MLflow: loader, log, checkpoints, and at the end the loss over the
whole validation split (the last tenth of the text), each character once. The seconds are those of the whole training
with that validation; the first step, which compiles with an empty cache, is told apart. nanoGPT's side is its own
train.py with the options of its README for a CPU, timed as a whole, and its own estimate of the validation loss.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from benchmarks.corpus import encode_texts
from lmcore.evaluate.loss import Loss, measure_loss
from lmcore.files import read_json
from lmcore.hardware.distributed import World
from lmcore.hardware.params import HardwareParams
from lmcore.hardware.resolve import claim_device
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.params import read_params
from lmcore.tokens.batches import Batches
from lmcore.tokens.dataset import TokenDataset, open_dataset
from lmcore.train.params import TrainParams
from lmcore.train.plan import plan_run
from lmcore.train.trainer import run_training
from lmcore.train_tokenizer.params import TokenizerParams
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

RECIPE = Path("recipes/speedrun-cpu.yaml")
# Changes of the recipe for a shorter time.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "full": {},
    "minute": {"train": {"max_steps": 690}},
    "quick": {
        "model": {"n_layers": 3, "context_length": 64},
        "train": {"batch_size": 16, "max_steps": 175},
    },
}
# As nanoGPT's README has it for a CPU, with the last estimate over as many batches as its GPU recipe takes.
NANOGPT_OPTIONS = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=200 --eval_interval=2000 "
    "--log_interval=100 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 "
    "--lr_decay_iters=2000 --dropout=0.0"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Train ours once for each seed, and theirs once if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--tune", action="store_true", help="hold out the last tenth of the training text instead")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value", help="try another value")
    arguments = parser.parse_args(argv)
    text = arguments.text.read_text(encoding="utf-8")
    if arguments.tune:
        text = text[: len(text) * 9 // 10]
    whole = -(-(len(text) - len(text) * 9 // 10) // 64)  # windows of the shortest context: more than there are
    model_params, train_params = read_settings(arguments.size, arguments.steps, arguments.set)
    with tempfile.TemporaryDirectory() as folder:
        dataset = encode(text, Path(folder))
        results = [
            train_ours(model_params, train_params.model_copy(update={"seed": seed, "eval_windows": whole}), dataset)
            for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        ]
    losses = [loss for loss, _ in results]
    if len(losses) > 1:
        spread = statistics.stdev(losses)
        seconds = statistics.mean(seconds for _, seconds in results)
        print(f"mean of {len(losses)} seeds: {statistics.mean(losses):.4f} +- {spread:.4f} after {seconds:.0f} s")
    if arguments.nanogpt:
        train_theirs(arguments.nanogpt, arguments.text)


def read_settings(size: str, steps: int | None, changes: list[str]) -> tuple[ModelParams, TrainParams]:
    """Return the recipe's parameters, changed for `size` and as asked."""
    yaml = YAML(typ="safe", pure=True)
    recipe = yaml.load(RECIPE)
    settings = {name: {**recipe[name], **SIZES[size].get(name, {})} for name in ("model", "train")}
    if steps:
        settings["train"]["max_steps"] = steps
    for change in changes:
        path, _, value = change.partition("=")
        section, _, key = path.partition(".")
        settings[section][key] = yaml.load(value)
    return ModelParams(**settings["model"]), TrainParams(**settings["train"])


def encode(text: str, folder: Path) -> TokenDataset:
    """Write the text's characters as tokens, the last tenth for validation."""
    end = len(text) * 9 // 10
    splits = {"train": [[text[:end]]], "validation": [[text[end:]]]}
    params = TokenizerParams(kind="char", vocab_size=None, digits=None, max_bytes=None)
    tokenizer = train_tokenizer(params, splits["train"])
    encode_texts(splits, tokenizer, folder, shard_tokens=10_000_000)
    return open_dataset(folder / "tokens", tokenizer)


def train_ours(model_params: ModelParams, params: TrainParams, dataset: TokenDataset) -> tuple[float, float]:
    """Train in a folder of its own; return the validation loss and the seconds."""
    torch.compiler.reset()
    started = time.perf_counter()
    model = GPT(model_params, dataset.train.vocab_size, params.seed, end_of_text=dataset.train.end_of_text)
    batches = Batches(dataset.train, params.batch_size, model_params.context_length, params.seed)
    request, settings = HardwareParams(), read_params()
    claim_device(request, settings)
    context = plan_run(request, settings, params, model_params, batches, World())
    model = GPT(model_params, dataset.train.vocab_size, params.seed, end_of_text=dataset.train.end_of_text)

    def validate(trained: GPT, *, with_masks: bool) -> Loss:
        lengths = dataset.tokenizer.byte_lengths
        return measure_loss(trained, dataset.validation, lengths, params.eval_windows, 64, with_masks=with_masks)

    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as silence:
        os.environ["DVC_ROOT"] = folder
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/compiled"  # nothing is compiled beforehand
        os.chdir(folder)
        try:
            with redirect_stdout(silence):
                run_training(
                    model, context, dataset, batches, origin={}, validate=validate, track=lambda _: nullcontext()
                )
            seconds = time.perf_counter() - started
            metrics = read_json(Path("reports/metrics/train.json"), "it should be there")
            (summary,) = Path("runs").glob("*/summary.json")
            speed = read_json(summary, "it should be there")["tokens_per_second"]
        finally:
            os.chdir(home)
    steady = metrics["tokens"] / speed
    print(
        f"seed {params.seed}: validation {metrics['val_loss']:.4f} after {seconds:.1f} s ({steady:.1f} s at "
        f"{speed:,.0f} tokens/s, the rest is compilation, validation and saving); {metrics['steps']} steps, "
        f"{model.count_parameters():,} parameters, {context.hardware.precision}, compiled: {context.hardware.compile}",
        flush=True,
    )
    return metrics["val_loss"], seconds


def train_theirs(checkout: Path, text: Path) -> None:
    """Run nanoGPT's CPU recipe in a copy of its checkout."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(shutil.copytree(checkout, Path(folder) / "nanoGPT"))
        data = project / "data" / "shakespeare_char"
        shutil.copy(text, data / "input.txt")
        subprocess.run([sys.executable, str(data / "prepare.py")], check=True, capture_output=True)
        started = time.perf_counter()
        command = [sys.executable, "train.py", *NANOGPT_OPTIONS.split()]
        finished = subprocess.run(command, cwd=project, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - started
    losses = re.findall(r"step \d+: train loss [\d.]+, val loss ([\d.]+)", finished.stdout)
    print(f"nanoGPT's CPU recipe: validation {losses[-1]} after {seconds:.1f} s (with two estimates of the loss)")


if __name__ == "__main__":
    main()
