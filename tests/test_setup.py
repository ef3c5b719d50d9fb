"""What is installed: declared packages, versions of Python, and the builds of torch that `make setup` chooses from."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CODE = sorted(path for folder in ("lmcore", "stages", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
# Packages of declared ones that are part of what these offer.
COMES_WITH = {"botocore": "s3fs", "dvc-data": "dvc", "pydantic-core": "pydantic", "starlette": "fastapi"}
VERSION = re.findall("^torch==(.*)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M)[0]


def names(requirements: list[str]) -> set[str]:
    """`psycopg[binary]` and `torch>=2.13` as `psycopg` and `torch`."""
    return {canonical(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in requirements}


def canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def imports(node: ast.AST, required: bool = True) -> Iterator[tuple[str, bool]]:
    """Top-level packages, and whether the file cannot be imported without them."""
    if isinstance(node, ast.Import):
        yield from ((alias.name.partition(".")[0], required) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module.partition(".")[0], required
    guarded = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Try) or (
        isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    )
    for child in ast.iter_child_nodes(node):
        yield from imports(child, required and not guarded)


def test_what_is_imported_is_declared() -> None:
    """In `dependencies` if a file cannot be imported without it; in an extra if a function or `try` imports it."""
    distributions = packages_distributions()
    runtime = names(PROJECT["dependencies"])
    declared = runtime.union(*map(names, PROJECT["optional-dependencies"].values()))
    wrong = set()
    for path in CODE:
        for package, required in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if package in sys.stdlib_module_names or (ROOT / package).is_dir():
                continue
            found = {canonical(name) for name in distributions.get(package, [package])}
            found |= {COMES_WITH[name] for name in found & COMES_WITH.keys()}
            if not found & (runtime if required else declared):
                wrong.add(f"{path.relative_to(ROOT)} imports {package}{' at once' if required else ''}")
    assert not wrong, "\n".join(["", *sorted(wrong), "=> pyproject.toml declares it, or `try` names the extra"])


def test_every_dependency_is_imported() -> None:
    distributions = packages_distributions()
    imported = {package for path in CODE for package, _ in imports(ast.parse(path.read_text(encoding="utf-8")))}
    used = {canonical(name) for package in imported for name in distributions.get(package, [])}
    assert names(PROJECT["dependencies"]) <= used


def test_the_versions_of_python_are_the_same_everywhere() -> None:
    declared = [line.rpartition(" :: ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    first, last = (int(version.removeprefix("3.")) for version in (declared[0], declared[-1]))
    assert declared == [f"3.{minor}" for minor in range(first, last + 1)]
    assert PROJECT["requires-python"] == f">=3.{first},<3.{last + 1}"
    assert f"(3, {first}) <= sys.version_info[:2] <= (3, {last})" in (ROOT / "Makefile").read_text(encoding="utf-8")
    workflow = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    assert re.findall(r"python: \[(.*)\]", workflow) == [", ".join(f'"{version}"' for version in declared)]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def installed(checkout: Path, *arguments: str) -> list[str]:
    """What pip would install, in turn, after its common options."""
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "TORCH")}
    command = ["make", "--dry-run", *arguments]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    return re.findall(r"pip install .*--constraint requirements\.lock (.*)", done.stdout)


def torch_from(folder: str) -> str:
    return f"--extra-index-url https://download.pytorch.org/whl/{folder} 'torch=={VERSION}+{folder}'"


RUNTIME, DEV = "--editable '.[hf]'", "--editable '.[hf,dev]'"


def test_repro_needs_less_than_test(checkout: Path) -> None:
    assert installed(checkout, "repro") == installed(checkout, "setup") == ["'torch'", RUNTIME]
    assert installed(checkout, "test") == ["'torch'", RUNTIME, DEV]


@pytest.mark.parametrize(
    ("torch", "folder"), [("cpu", "cpu"), ("cuda", "cu130"), ("rocm", "rocm7.2"), ("cu126", "cu126")]
)
def test_a_build_of_torch_is_chosen(checkout: Path, torch: str, folder: str) -> None:
    assert installed(checkout, "setup", f"TORCH={torch}") == [torch_from(folder), RUNTIME]


def test_another_build_installs_nothing_but_torch(checkout: Path) -> None:
    (checkout / ".venv/bin").mkdir(parents=True)
    for name in ("bin/pip", ".torch", ".runtime", ".dev"):
        (checkout / ".venv" / name).touch()
    (checkout / ".venv/.torch").write_text("cu130\n", encoding="utf-8")
    assert installed(checkout, "repro") == installed(checkout, "test", "TORCH=cuda") == []
    assert installed(checkout, "test", "TORCH=cpu") == [torch_from("cpu")]
    assert installed(checkout, "setup", "TORCH=pypi") == [f"'torch!={VERSION}+cu130'"]


def test_a_new_lock_keeps_the_build_of_torch(checkout: Path) -> None:
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/pip").touch()
    (checkout / ".venv/.torch").write_text("cpu\n", encoding="utf-8")
    os.utime(checkout / ".venv/.torch", (0, 0))
    assert installed(checkout, "repro") == [torch_from("cpu"), RUNTIME]
