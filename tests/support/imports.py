"""What imports what, read from the syntax tree: imports inside functions and under TYPE_CHECKING included."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


def source_files(*folders: str) -> list[Path]:
    """The Python files below these folders of the project, without the empty __init__.py files; relative, sorted."""
    found = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in found if path.name != "__init__.py" or (ROOT / path).read_text())


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@cache
def imported_names(path: Path) -> frozenset[str]:
    """Dotted names that the file imports: `from a import b` may mean the module a.b, or b in a, and gives both."""
    names: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} a relative import hides where it leads: write the whole name"
            assert node.module
            names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return frozenset(names)


def imported_packages(path: Path) -> set[str]:
    """The top-level packages that the file imports: {"torch", "pathlib", "lmcore"}."""
    return {name.partition(".")[0] for name in imported_names(path)}


@cache
def imported_files(path: Path) -> frozenset[Path]:
    """The project's own files that the file imports, without the empty __init__.py files."""
    candidates = {Path(*name.split(".")).with_suffix(".py") for name in imported_names(path)}
    return frozenset(candidate for candidate in candidates if (ROOT / candidate).is_file())


@cache
def import_closure(path: Path) -> frozenset[Path]:
    """The project's own files that the file imports, what these import, and so on; without the file itself."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        new = imported_files(waiting.pop()) - found
        found |= new
        waiting += new
    return frozenset(found - {path})
