"""Listing of the benchmarks.

python -m benchmarks                    # names and purposes
python -m benchmarks.encode --help      # options of one
"""

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from lmcore.errors import LmcoreError, ParameterError, suggest

FOLDER = Path(__file__).parent


def list_benchmarks() -> dict[str, str]:
    """Return the first line of each benchmark's docstring by its name, without importing any.

    A benchmark is a file with a function `main`; the other files are shared by several.
    """
    found = {}
    for path in sorted(FOLDER.glob("[a-z]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def run_benchmark(name: str, arguments: Sequence[str]) -> None:
    """Run one of the benchmarks. Raises ParameterError for an unknown name."""
    known = list_benchmarks()
    if name not in known:
        hint = suggest(name, known, "known are")
        raise ParameterError(f"benchmark {name!r}: must be one that python -m benchmarks lists,{hint}")
    importlib.import_module(f"benchmarks.{name}").main(arguments)


def main(argv: Sequence[str] | None = None) -> None:
    """List the benchmarks, or run the one that is named."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
    if name:
        try:
            run_benchmark(name, arguments)
        except LmcoreError as error:
            raise SystemExit(f"{error}") from None
        return
    benchmarks = list_benchmarks()
    width = max(map(len, benchmarks))
    for name, purpose in benchmarks.items():
        print(f"{name:{width}}  {purpose}")


if __name__ == "__main__":
    main()
