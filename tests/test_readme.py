"""README.md and its companions tell the truth: the tree, the commands, no place of one machine."""

import re
import subprocess
from pathlib import Path

from imports import ROOT, source_files

# The tree is the fenced block of README.md that has a line `lmcore/`: two spaces of indentation per folder, a folder's
# name ends with a slash, a caption follows after two spaces or more.
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    ".github/workflows/*.yml",
    ".pre-commit-config.yaml",
    ".ci/run",
]
PLACES_OF_ONE_MACHINE = re.compile(r"(?<![\w.~)}-])/(?:tmp|root|home|work)/")


def readme_tree() -> dict[str, str]:
    """Return the captions in the README's tree by path; a folder's path ends with a slash."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    tree = next((block for block in blocks if re.search("^lmcore/$", block, re.M)), None)
    assert tree is not None, "README.md has no tree of the project"
    captions: dict[str, str] = {}
    parent = ""
    for line in tree.splitlines():
        names, _, text = line.strip().partition("  ")
        for name in names.split(", "):
            captions[(parent if line.startswith("  ") else "") + name] = text.strip()
        parent = parent if line.startswith("  ") else names
    return captions


def test_the_tree_shows_every_folder_and_loose_module() -> None:
    files = [path.relative_to("lmcore") for path in source_files("lmcore") if path.name != "__main__.py"]
    expected = {f"lmcore/{path.parts[0]}{'/' if len(path.parts) > 1 else ''}" for path in files}
    shown = {path for path in readme_tree() if path.startswith("lmcore/") and path != "lmcore/"}
    assert shown == expected
    assert all(readme_tree()[path] for path in shown), "each has a caption"


def test_what_the_tree_shows_exists() -> None:
    absent = [path for path in readme_tree() if not (ROOT / path).exists() and git("check-ignore", path) == ""]
    assert not absent, f"README.md shows {', '.join(absent)}, which neither exist nor are made and ignored by git"


def test_the_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall("^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {(path, name) for path in documents() for name in re.findall(r"\bmake ([a-z-]+)", commands(path))}
    unknown = [f"{path.relative_to(ROOT)}: make {name}" for path, name in sorted(named) if name not in targets]
    assert not unknown, f"the Makefile has no such target: {unknown}; it has {sorted(targets)}"


def test_every_gate_is_the_same_command() -> None:
    """A person, the continuous integration and the hook run the same make targets and nothing beside them."""
    assert (ROOT / ".ci/run").read_text().splitlines()[-2:] == ["make test", "exec make test-all"]
    assert re.findall("run: (.*)", (ROOT / ".github/workflows/test.yml").read_text()) == ["make test", "make test-all"]
    assert re.findall("entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text()) == ["make check"]
    assert re.findall("^test:.*", (ROOT / "Makefile").read_text(), re.M)[0].startswith("test: $(DEV) check "), (
        "make test begins with what the hook runs"
    )


def test_nothing_names_a_place_of_one_machine() -> None:
    committed = git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    assert committed, "this test asks git for the project's files"
    complaints = [
        f"{path}:{number}: {line.strip()[:100]}"
        for path in committed
        if not path.startswith("tests/") and (ROOT / path).is_file()
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if PLACES_OF_ONE_MACHINE.search(line)
    ]
    assert not complaints, "\n".join(["", *complaints, "=> make the path relative to the project"])


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout


def documents() -> list[Path]:
    return [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]


def commands(path: Path) -> str:
    """What the document tells a reader to type: the code in Markdown, everything elsewhere."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".md":
        return text
    code = re.findall(r"^```\w*\n(.*?)^```|^ {4}([^\n]*)|`([^`\n]+)`", text, re.M | re.S)
    return "\n".join("".join(groups) for groups in code)
