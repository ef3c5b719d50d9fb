"""README.md and its companions tell the truth: the tree, the commands, no place of one machine."""

import re
import subprocess
from pathlib import Path

from imports import ROOT, caption, source_files

# The tree is the fenced block of README.md that has a line beginning with `lmcore/`. Two spaces of indentation per
# folder, a folder's name ends with a slash, a caption follows after two spaces or more.
CAPTION_COLUMN = 24
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    ".github/workflows/*.yml",
    ".pre-commit-config.yaml",
    ".ci/run",
]
PLACES_OF_ONE_MACHINE = re.compile(r"(?<![\w.~)}-])/(?:tmp|root|home|work)/")


def expected_tree(*folders: str) -> str:
    """The README's tree of these folders: files before folders, captions from the first lines of the docstrings."""
    lines: list[str] = []
    shown: set[Path] = set()
    for path in [path for folder in folders for path in sorted(source_files(folder), key=by_depth)]:
        for folder in [*reversed(path.parents)][1:]:
            if folder not in shown:
                lines.append("  " * (len(folder.parts) - 1) + f"{folder.name}/")
                shown.add(folder)
        name = "  " * (len(path.parts) - 1) + path.name
        lines.append(f"{name:{CAPTION_COLUMN}}  {caption(path)}")
    return "\n".join(lines)


def by_depth(path: Path) -> tuple[int, Path]:
    return len(path.parts), path


def readme_tree() -> dict[str, str]:
    """The captions in the README's tree by path; a folder's path ends with a slash."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    tree = next((block for block in blocks if re.search("^lmcore/", block, re.M)), None)
    assert tree is not None, f"README.md has no tree; for a beginning:\n{expected_tree('stages', 'lmcore')}"
    captions: dict[str, str] = {}
    folders: list[str] = []
    for line in tree.splitlines():
        name, _, text = line.strip().partition("  ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        captions["".join(folders[: depth + 1])] = text.strip()
    return captions


def test_the_tree_is_the_code() -> None:
    files = source_files("lmcore", "stages")
    tree = {path: text for path, text in readme_tree().items() if path.endswith(".py")}
    wrong = [f"not in the tree: {path}" for path in files if str(path) not in tree]
    wrong += [f"not in the checkout: {path}" for path in tree if Path(path) not in files]
    wrong += [f"captioned otherwise: {path}" for path in files if tree.get(str(path), caption(path)) != caption(path)]
    assert not wrong, "\n".join(["", *wrong, "=> the tree in README.md:", expected_tree("stages", "lmcore")])


def test_what_the_tree_shows_exists() -> None:
    absent = [path for path in readme_tree() if not (ROOT / path).exists() and git("check-ignore", path) == ""]
    assert not absent, f"README.md shows {', '.join(absent)}, which neither exist nor are made and ignored by git"


def test_the_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall("^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {(path, name) for path in documents() for name in re.findall(r"\bmake ([a-z]+)", commands(path))}
    unknown = [f"{path.relative_to(ROOT)}: make {name}" for path, name in sorted(named) if name not in targets]
    assert not unknown, f"the Makefile has no such target: {unknown}; it has {sorted(targets)}"


def test_every_gate_is_the_same_command() -> None:
    """A person, the continuous integration and the hook run the same make targets and nothing beside them."""
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "exec make test"
    assert re.findall("run: (.*)", (ROOT / ".github/workflows/test.yml").read_text()) == ["make test"]
    assert re.findall("entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text()) == ["make check"]
    assert re.findall("^test:.*", (ROOT / "Makefile").read_text(), re.M)[0].startswith("test: $(READY) check "), (
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
