"""New values in params.yaml, and every other character as it was."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node

from lmcore.errors import ParameterError
from lmcore.files import write_text
from lmcore.params import Change, Values, compare_values, parse_params, read_params, spell_yaml

COMMENT_GAP = 2  # spaces before a comment that its line's value pushes off the column of the others


def rewrite_file(path: Path, values: Values, *, dry_run: bool = False) -> list[Change]:
    """Give the keys in the YAML file at `path` these values, whole or not at all; `dry_run` only tries.

    Return what changes. Raises ParameterError, and writes nothing, for a key without a line or a file that cannot be
    changed in place.
    """
    changes = compare_values(read_params(path), values)
    rewritten = rewrite(path.read_bytes().decode("utf-8"), changes)
    try:
        differs = bool(changes and compare_values(parse_params(rewritten.encode(), str(path)), values))
    except ParameterError:
        differs = True
    if differs:  # an anchor's value, say, is that of its aliases too
        raise ParameterError(
            f"{path} cannot be changed in place: write it in block style without anchors, or change it by hand: "
            f"{'; '.join(map(str, changes))}"
        )
    if changes and not dry_run:
        write_text(path, rewritten)
    return changes


def rewrite(text: str, changes: Sequence[Change]) -> str:
    """The YAML `text` with the new values at their places; comments stay in their column.

    ruamel.yaml says where the places are. Its own way of writing, the round trip, sets all lists of a file in one
    indentation, and `dvc exp run -S` has another than params.yaml as it is published: lines would change whose values
    do not.
    """
    root = YAML(typ="safe", pure=True).compose(text)
    comments = [re.match(r" +[\w-]+:.*? (?=#)", line) for line in text.splitlines()]
    columns = [comment.end() for comment in comments if comment]
    column = max(columns, key=columns.count, default=0)  # where most comments at the end of a line begin
    edits = []
    for change in changes:
        found = _find(root, f"{change.section}.{change.key}")
        if found is None:
            raise ParameterError(
                f"params.yaml has no {change.section}.{change.key}: write the line "
                f"`{change.key}: {spell_yaml(change.new)}` in its section {change.section}"
            )
        edits.append(_edit(text, *found, change.new, column))
    for start, end, replacement in sorted(edits, reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


def _find(section: Node, key: str) -> tuple[Node, Node] | None:
    """The nodes, key and value, of a key that may be dotted."""
    nodes = {node.value: (node, value) for node, value in section.value} if isinstance(section, MappingNode) else {}
    if key in nodes:
        return nodes[key]
    outer, _, inner = key.partition(".")
    return _find(nodes[outer][1], inner) if inner and outer in nodes else None


def _edit(text: str, key: Node, value: Node, new: Any, column: int) -> tuple[int, int, str]:
    """From where to where `text` is replaced by what, so that the key has the `new` value."""
    colon = text.index(":", key.end_mark.index) + 1
    is_below = isinstance(value, CollectionNode) and not value.flow_style  # and the comment is before it
    last = value.value[-1] if is_below else value
    end = (last[1] if isinstance(last, tuple) else last).end_mark.index
    # An empty value's place is the next key's, and a text in several lines (`|`) ends behind its line breaks.
    end = colon + len(text[colon:end].rstrip()) if value.start_mark.index < end else colon
    spelt, items, indent = "", [], key.start_mark.column + 2
    if isinstance(new, Mapping):  # on lines of their own, as DVC writes them too
        items = [f"{spell_yaml(name)}: {spell_yaml(entry)}" for name, entry in new.items()]
    elif isinstance(new, list) and is_below:
        items, indent = [f"- {spell_yaml([item])[1:-1]}" for item in new], value.start_mark.column
    else:
        spelt = f" {spell_yaml(new)}".rstrip()
    if comment := re.compile(" +(#[^\n]*)").match(text, colon if is_below else end):
        before = colon - (text.rfind("\n", 0, colon) + 1) + len(spelt)
        spelt += " " * max(COMMENT_GAP, column - before) + comment[1]
        end = max(end, comment.end())
    return colon, end, spelt + "".join(f"\n{' ' * indent}{item}" for item in items)
