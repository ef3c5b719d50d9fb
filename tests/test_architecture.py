"""The shape of the code: floors, cycles, sizes and names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from imports import ROOT, import_closure, imported_files, imported_packages, parse, source_files

# From the ground up: a file stands where it is named, or where its folder is.
FLOORS = [
    ["lmcore/errors.py", "lmcore/files.py", "lmcore/findings.py", "lmcore/params.py", "lmcore/rewrite.py"],
    [
        "lmcore/cards.py",
        "lmcore/cluster.py",
        "lmcore/distributed.py",
        "lmcore/dvc_queue.py",
        "lmcore/engine.py",
        "lmcore/hardware.py",
        "lmcore/hub.py",
        "lmcore/machine.py",
        "lmcore/plots.py",
        "lmcore/progress.py",
        "lmcore/remotes.py",
        "lmcore/scratch.py",
        "lmcore/workers.py",
    ],
    ["lmcore/corpus", "lmcore/model", "lmcore/tokenizer", "lmcore/tokens", "lmcore/tracking"],
    ["lmcore/evaluate", "lmcore/generate", "lmcore/tokenizer_report", "lmcore/train"],
    ["lmcore/export"],
    [
        "lmcore/compare",
        "lmcore/forecast.py",
        "lmcore/lineage",
        "lmcore/pyfunc.py",
        "lmcore/recipes.py",
        "lmcore/recovery.py",
        "lmcore/serve",
        "lmcore/terminal.py",
        "lmcore/validate.py",
    ],
    ["stages", "lmcore/cli.py", "lmcore/doctor.py", "lmcore/search.py", "lmcore/__main__.py"],
]
# What one folder may import from another on its own floor.
SIDEWAYS = {
    ("lmcore/tokens", "lmcore/tokenizer"),
    ("lmcore/evaluate", "lmcore/generate"),
    ("lmcore/lineage", "lmcore/compare"),
}

# Heavy or replaceable libraries, and the one place that imports each; YAML is read in one and written in another.
HOMES: dict[str, str | tuple[str, str]] = {
    "datasketch": "lmcore/corpus/near_duplicates.py",
    "dvc": "lmcore/lineage/project.py",
    "dvc_data": "lmcore/lineage/project.py",
    "fsspec": "lmcore/corpus/remote.py",
    "fastapi": "lmcore/serve",
    "gguf": "lmcore/export/llama_cpp.py",
    "huggingface_hub": ("lmcore/corpus/remote.py", "lmcore/hub.py"),
    "lm_eval": "lmcore/evaluate/harness.py",
    "matplotlib": "lmcore/plots.py",
    "mlflow": ("lmcore/pyfunc.py", "lmcore/tracking"),
    "optuna": "lmcore/search.py",
    "pandas": ("lmcore/corpus/schema.py", "lmcore/pyfunc.py"),
    "pandera": "lmcore/corpus/schema.py",
    "prometheus_client": "lmcore/serve",
    "ray": "lmcore/cluster.py",
    "ruamel": ("lmcore/params.py", "lmcore/rewrite.py"),
    "tensorboard": "lmcore/tracking/tensorboard_backend.py",
    "tiktoken": "lmcore/tokenizer",
    "tokenizers": "lmcore/tokenizer",
    "transformers": "lmcore/export/reference.py",
    "typer": "lmcore/cli.py",
    "uvicorn": "lmcore/serve",
    "wandb": "lmcore/tracking/wandb_backend.py",
}
WITHOUT_TORCH = ["lmcore/corpus", "lmcore/tokenizer", "lmcore/tokens"]
NAMES_THAT_SAY_NOTHING = {"common", "core", "helper", "helpers", "misc", "tools", "util", "utils"}
MAX_LINES = {"lmcore": 400, "stages": 40, "tests": 400, "benchmarks": 400}
MAX_FUNCTION_LINES = 60

CODE = source_files("lmcore", "stages")
EVERYTHING = source_files(*MAX_LINES)
IMPORTS = [(path, imported) for path in CODE for imported in sorted(imported_files(path))]


def floor_of(path: Path) -> tuple[int, str]:
    """The floor's number, and the folder on it that the file belongs to."""
    for number, floor in enumerate(FLOORS):
        for entry in floor:
            if path.is_relative_to(entry):
                return number, str(Path(entry).parent) if entry.endswith(".py") else entry
    pytest.fail(f"{path} has no floor: enter it, or its folder, in FLOORS of tests/{Path(__file__).name}")


def explain(complaints: list[str], remedy: str) -> str:
    return "\n".join(["", *complaints, f"=> {remedy}"])


def test_imports_go_down() -> None:
    complaints = []
    for path, imported in IMPORTS:
        (floor, folder), (other_floor, other_folder) = floor_of(path), floor_of(imported)
        neighbour = floor == other_floor and (folder == other_folder or (folder, other_folder) in SIDEWAYS)
        if not (other_floor < floor or neighbour):
            complaints.append(f"{path} (floor {floor}) imports {imported} (floor {other_floor})")
    assert not complaints, explain(
        complaints, "take what it gives as an argument, or move the shared part further down"
    )


def test_imports_have_no_cycles() -> None:
    complaints = [
        f"{path} imports {imported}, which comes back to it"
        for path, imported in IMPORTS
        if path in {imported, *import_closure(imported)}
    ]
    assert not complaints, explain(complaints, "move what both need into a third file")


@pytest.mark.parametrize(("package", "home"), HOMES.items())
def test_a_library_has_one_home(package: str, home: str | tuple[str, str]) -> None:
    homes = (home,) if isinstance(home, str) else home
    users = [path for path in CODE if package in imported_packages(path)]
    assert users, f"nothing imports {package} any more: remove it from HOMES, and from pyproject.toml if it is there"
    complaints = [f"{path} imports {package}" for path in users if not any(map(path.is_relative_to, homes))]
    assert not complaints, explain(complaints, f"only {' and '.join(homes)} does: call it")


def test_text_and_tokens_need_no_torch() -> None:
    complaints = [
        f"{path} needs torch through {guilty}"
        for path in source_files(*WITHOUT_TORCH)
        for guilty in sorted({path, *import_closure(path)})
        if "torch" in imported_packages(guilty)
    ]
    assert not complaints, explain(complaints, "corpus, tokenizer and tokens run where torch is not even loaded")


def test_files_are_short() -> None:
    lengths = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in EVERYTHING}
    limits = {path: MAX_LINES[path.parts[0]] for path in EVERYTHING}
    complaints = [
        f"{path}: {lengths[path]} lines of {limits[path]}" for path in EVERYTHING if lengths[path] > limits[path]
    ]
    assert not complaints, explain(complaints, "find the second thing that the file does and move it")


def test_functions_are_read_in_one_screen() -> None:
    functions = [
        (path, node)
        for path in EVERYTHING
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = [(path, node, (node.end_lineno or node.lineno) - node.lineno + 1) for path, node in functions]
    complaints = [
        f"{path}:{node.lineno} {node.name}: {lines} lines of {MAX_FUNCTION_LINES}"
        for path, node, lines in lengths
        if lines > MAX_FUNCTION_LINES
    ]
    assert not complaints, explain(complaints, "give a part of it a name")


def test_names_say_what_is_inside() -> None:
    complaints = [str(path) for path in EVERYTHING if NAMES_THAT_SAY_NOTHING & {*path.parent.parts, path.stem}]
    assert not complaints, explain(complaints, "call it after what it holds")


def test_packages_are_empty() -> None:
    complaints = [str(path) for path in CODE if path.name == "__init__.py"]
    assert not complaints, explain(complaints, "leave it empty, so that importing one module loads no other")


def test_importing_lmcore_is_quick_and_brings_no_torch() -> None:
    program = """
import sys, time
durations = []
for _ in range(5):
    sys.modules.pop("lmcore", None)
    started = time.perf_counter()
    import lmcore
    durations.append(time.perf_counter() - started)
print("torch" in sys.modules, min(durations) < 0.1)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "True"]
