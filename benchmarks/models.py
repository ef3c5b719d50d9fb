"""Seconds and peak memory of importing and exporting a model, each in a process of its own.

    python -m benchmarks.models                  # GPT-2's shape, 124M parameters, random weights
    python -m benchmarks.models --layers 4 --width 256 --rounds 3

Seconds are those of the call, libraries that it imports included; memory is the largest resident set, which counts the
pages of mapped files too, without what Python, torch and lmcore took before the call.
"""

import argparse
import itertools
import json
import string
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.timing import alternate, run_apart
from lmcore.export.hugging_face import export_model
from lmcore.export.params import ExportParams
from lmcore.hardware.measure import peak_memory_bytes
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.model.save_load import load_model, save_model
from lmcore.tokenizer.bpe import PATTERN, BpeTokenizer

EXPORTS: dict[str, str | None] = {
    "export to Hugging Face": None,
    "export with GGUF f32": "f32",
    "export with GGUF f16": "f16",
    "export with GGUF q8_0": "q8_0",
}
TASKS = ["nothing", "import of ours", "import of Hugging Face's", *EXPORTS]


def make_tokenizer(entries: int) -> BpeTokenizer:
    """Byte-level BPE with that many entries: the bytes, and short words, end-of-text last."""
    words = (
        "".join(word).encode()
        for length in (2, 3)
        for word in itertools.product(string.ascii_letters + string.digits, repeat=length)
    )
    tokens = [*(bytes([byte]) for byte in range(256)), *itertools.islice(words, entries - 257)]
    return BpeTokenizer.from_ranks({token: rank for rank, token in enumerate(tokens)}, PATTERN, entries - 1)


def save_random(folder: Path, layers: int, width: int, entries: int) -> None:
    """Save a model with GPT-2's blocks and random weights, and a tokenizer."""
    params = ModelParams(
        n_layers=layers,
        n_heads=width // 64,
        d_model=width,
        context_length=1024,
        norm="layernorm",
        position="learned",
        mlp="gelu",
        qk_norm=False,
        bias=True,
    )
    save_model(folder, GPT(params, entries, seed=1), {})
    make_tokenizer(entries).save(folder)


def run_task(task: str, folder: Path) -> None:
    """Run a task in this process; print its seconds and the peak of its memory in bytes."""
    before = peak_memory_bytes()
    started = time.perf_counter()
    if task.startswith("import"):
        load_model(folder / ("gpt" if task == "import of ours" else "export"))
    elif task in EXPORTS:
        params = ExportParams(name="random", dtype="float32", gguf=EXPORTS[task])
        export_model(params, folder / "gpt", folder / "export", corpus={}, figures={})
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "before": before, "peak": peak_memory_bytes()}))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each task, several times in turn, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--entries", type=int, default=50_257)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.task:
        run_task(options.task, options.folder)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_random(folder / "gpt", options.layers, options.width, options.entries)
        size = (folder / "gpt" / "model.safetensors").stat().st_size
        print(f"{size / 1e6:.0f} MB of weights in fp32")
        run = partial(run_apart, "benchmarks.models", "--folder", place, "--task")
        run("export to Hugging Face")  # leaves what the import reads
        found = alternate({task: partial(run, task) for task in options.tasks}, options.rounds)
        for task, results in found.items():
            result = sorted(results, key=lambda each: each["seconds"])[len(results) // 2]
            grown = result["peak"] - result["before"]
            print(
                f"{task:26} {result['seconds']:5.1f} s, {grown / 1e6:5.0f} MB, {grown / size:4.2f} x the weights; with "
                f"Python and torch {result['peak'] / 1e6:5.0f} MB, {result['peak'] / size:4.2f} x"
            )


if __name__ == "__main__":
    main()
