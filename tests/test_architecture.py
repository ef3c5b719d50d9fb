"""The shape of the code: floors, cycles, sizes and names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from imports import ROOT, import_closure, imported_files, imported_packages, parse, source_files

# From the ground up; a folder or a loose module imports only from the floors below its own.
FLOORS = [
    ["lmcore/errors.py"],
    ["lmcore/files.py", "lmcore/params.py"],
    ["lmcore/hub.py", "lmcore/plots.py", "lmcore/runtime"],
    ["lmcore/download", "lmcore/hardware", "lmcore/prepare", "lmcore/tokenizer", "lmcore/tracking"],
    ["lmcore/experiments", "lmcore/model", "lmcore/tokens", "lmcore/train_tokenizer"],
    ["lmcore/encode", "lmcore/evaluate", "lmcore/export", "lmcore/generate", "lmcore/train"],
    ["lmcore/lineage", "lmcore/serve", "stages"],
    ["lmcore/commands"],
    ["lmcore/cli.py"],
    ["lmcore/__main__.py"],
]
MAX_LOOSE_MODULES = 8  # in lmcore/ itself

# Heavy or replaceable libraries, and the one place that imports each; YAML is read in one and written in another.
HOMES: dict[str, str | tuple[str, str]] = {
    "datasketch": "lmcore/prepare/minhash.py",
    "dvc": "lmcore/lineage/dvc_files.py",
    "dvc_data": "lmcore/lineage/dvc_files.py",
    "fsspec": "lmcore/download/stores.py",
    "fastapi": "lmcore/serve",
    "gguf": "lmcore/export/llama_cpp.py",
    "huggingface_hub": ("lmcore/download/stores.py", "lmcore/hub.py"),
    "lm_eval": "lmcore/commands/harness.py",
    "matplotlib": "lmcore/plots.py",
    "mlflow": ("lmcore/serve/mlflow_pyfunc.py", "lmcore/tracking"),
    "optuna": "lmcore/experiments/search.py",
    "pandas": ("lmcore/prepare/schema.py", "lmcore/serve/mlflow_pyfunc.py"),
    "pandera": "lmcore/prepare/schema.py",
    "prometheus_client": "lmcore/serve",
    "ray": "lmcore/runtime/ray_pool.py",
    "ruamel": ("lmcore/params.py", "lmcore/commands/edit_params.py"),
    "tensorboard": "lmcore/tracking/tensorboard_backend.py",
    "tiktoken": "lmcore/tokenizer",
    "tokenizers": "lmcore/tokenizer",
    "transformers": "lmcore/export/transformers_reference.py",
    "typer": "lmcore/cli.py",
    "uvicorn": "lmcore/serve",
    "wandb": "lmcore/tracking/wandb_backend.py",
}
WITHOUT_TORCH = [
    f"lmcore/{name}" for name in ("download", "prepare", "train_tokenizer", "encode", "tokenizer", "tokens", "runtime")
]
NAMES_THAT_SAY_NOTHING = {"common", "core", "helper", "helpers", "misc", "tools", "util", "utils"}
MAX_LINES = {"lmcore": 400, "stages": 40, "tests": 400, "benchmarks": 400}
MAX_FUNCTION_LINES = 60

CODE = source_files("lmcore", "stages")
EVERYTHING = source_files(*MAX_LINES)
IMPORTS = [(path, imported) for path in CODE for imported in sorted(imported_files(path))]


def floor_of(path: Path) -> tuple[int, str]:
    """Return the floor's number, and the entry of FLOORS that the file belongs to."""
    for number, floor in enumerate(FLOORS):
        for entry in floor:
            if path.is_relative_to(entry):
                return number, entry
    pytest.fail(f"{path} has no floor: enter it, or its folder, in FLOORS of tests/{Path(__file__).name}")


def explain(complaints: list[str], remedy: str) -> str:
    return "\n".join(["", *complaints, f"=> {remedy}"])


def test_imports_go_down() -> None:
    complaints = []
    for path, imported in IMPORTS:
        (floor, entry), (other_floor, other_entry) = floor_of(path), floor_of(imported)
        if entry != other_entry and other_floor >= floor:
            complaints.append(f"{path} (floor {floor}) imports {imported} (floor {other_floor})")
    assert not complaints, explain(complaints, "pass what it provides as an argument, or move the shared part down")


def test_few_modules_are_loose() -> None:
    loose = [str(path) for path in source_files("lmcore") if path.parent == Path("lmcore")]
    assert len(loose) <= MAX_LOOSE_MODULES, explain(loose, "move one into the folder of its stage")


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
    assert not complaints, explain(complaints, "text and tokens are processed where torch is not loaded")


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
