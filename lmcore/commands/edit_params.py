"""New values in params.yaml, and every other character as it was."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from lmcore.errors import ParameterError
from lmcore.files import write_text
from lmcore.params import Change, _spell, _spell_json

COMMENT_GAP = 2  # spaces before a comment that its line's value pushes off the column of the others


def rewrite_file(path: Path, changes: Sequence[Change], *, dry_run: bool = False) -> None:
    """Give the keys in the YAML file at `path` their new values, whole or not at all; `dry_run` only tries.

    Raises ParameterError, and writes nothing, for a key without a line or a file that cannot be changed in place.
    """
    text = path.read_bytes().decode("utf-8")
    rewritten = rewrite(text, changes)
    if not _holds(rewritten, text, changes):  # an anchor's value, say, is that of its aliases too
        raise ParameterError(
            f"{path} cannot be changed in place: write it in block style without anchors, or change it by hand: "
            f"{'; '.join(map(str, changes))}"
        )
    if changes and not dry_run:
        write_text(path, rewritten)


def rewrite(text: str, changes: Sequence[Change]) -> str:
    """The YAML `text` with the new values at their places; comments stay in their column.

    ruamel.yaml says where the places are. Its own way of writing, the round trip, sets all lists of a file in one
    indentation, and `dvc exp run -S` has another than params.yaml as it is published: lines would change whose values
    do not.
    """
    root = YAML(typ="safe", pure=True).compose(text)
    sections = {key.value: _children(section) for key, section in root.value}
    column = _comment_column(text)
    edits = []
    for change in changes:
        found = _find(sections.get(change.section, {}), change.key)
        if found is None:
            raise ParameterError(
                f"params.yaml has no {change.section}.{change.key}: write the line "
                f"`{change.key}: {_spell(change.new)}` in its section {change.section}"
            )
        edits.append(_edit(text, *found, change.new, column))
    for start, end, replacement in sorted(edits, reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


def _holds(rewritten: str, text: str, changes: Sequence[Change]) -> bool:
    """Whether `rewritten` is the YAML `text` with these changes and no others."""
    yaml = YAML(typ="safe", pure=True)
    wanted = yaml.load(text)
    for change in changes:
        place = wanted[change.section]
        *outer, last = change.key.split(".") if change.key not in place else [change.key]
        for name in outer:
            place = place[name]
        place[last] = change.new
    try:
        return bool(yaml.load(rewritten) == wanted)
    except YAMLError:
        return False


def _find(nodes: Mapping[str, tuple[Node, Node]], key: str) -> tuple[Node, Node] | None:
    """The nodes, key and value, of a key that may be dotted."""
    if key in nodes:
        return nodes[key]
    outer, _, inner = key.partition(".")
    return _find(_children(nodes[outer][1]), inner) if inner and outer in nodes else None


def _children(section: Node) -> Mapping[str, tuple[Node, Node]]:
    """A section's nodes, key and value, by the key."""
    return {key.value: (key, value) for key, value in section.value} if isinstance(section, MappingNode) else {}


def _edit(text: str, key: Node, value: Node, new: Any, column: int) -> tuple[int, int, str]:
    """From where to where `text` is replaced by what, so that the key has the `new` value."""
    begin, end = value.start_mark.index, value.end_mark.index
    if isinstance(value, SequenceNode) and isinstance(new, list) and not value.flow_style:
        indent = " " * value.start_mark.column
        items = f"\n{indent}".join(f"- {_spell_json(item)}" for item in new)
        return begin, _end_of_text(text, begin, value.value[-1].end_mark.index), items
    colon = text.index(":", key.end_mark.index) + 1
    end = _end_of_text(text, colon, end) if begin < end else colon  # an empty value's place is the next key's
    is_below = isinstance(value, MappingNode) and not value.flow_style  # and the comment is before it
    if is_below:
        end = _end_of_text(text, begin, value.value[-1][1].end_mark.index)
    spelt, lines = ("", _spell_lines(new, key)) if isinstance(new, Mapping) else (f" {_spell(new)}".rstrip(), "")
    if comment := re.compile(" +(#[^\n]*)").match(text, colon if is_below else end):
        before = colon - (text.rfind("\n", 0, colon) + 1) + len(spelt)
        spelt += " " * max(COMMENT_GAP, column - before) + comment[1]
        end = max(end, comment.end())
    return colon, end, spelt + lines


def _spell_lines(new: Mapping[str, Any], key: Node) -> str:
    """A mapping's entries on lines of their own, as DVC writes them too."""
    indent = " " * (key.start_mark.column + 2)
    return "".join(f"\n{indent}{_spell(name)}: {_spell(value)}" for name, value in new.items())


def _end_of_text(text: str, begin: int, end: int) -> int:
    """`end` without the line breaks that belong to a text in several lines (`|`)."""
    return begin + len(text[begin:end].rstrip())


def _comment_column(text: str) -> int:
    """Where most comments at the end of a line begin."""
    found = [re.match(r" +[\w-]+:.*? (?=#)", line) for line in text.splitlines()]
    columns = [comment.end() for comment in found if comment]
    return max(columns, key=columns.count, default=0)
