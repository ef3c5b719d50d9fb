"""params.yaml, read exactly as DVC reads it and checked before any work.

DVC reads YAML 1.2 through ruamel.yaml: `6e-05` is a number and `no` is a string, where PyYAML's YAML 1.1 has it the
other way round. Reading with the same library is the only way to see the values that DVC recorded.
"""

import functools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticKnownError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from lmcore.errors import ParameterError, nearest

# Pydantic's rules in a user's words; the others read well as they are: "greater than or equal to 1".
RULES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text of at least one character",
    "list_type": "a list",
    "model_type": "a section with its keys",
    "dict_type": "names with their values, as {one: 0.7, two: 0.3}",
    "too_short": "one entry or more",
}
# What YAML 1.1 takes for something else than text is quoted, although DVC and we read YAML 1.2.
PLAIN_TEXT = re.compile(r"(?!(?:true|false|null|yes|no|on|off|y|n)$)[a-z][\w./-]*", re.IGNORECASE)
SHOWN_CHARACTERS = 100  # of a value, in a message
RETIRED = [("evaluate", "python_samples")]  # keys of earlier versions: read past, with a notice


def _integral(value: object) -> object:
    """A whole number written as a float is an integer: `1e4` arrives as 10000.0. `2.5` and `True` are refused later."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_integral)]
AutoOrCount = Literal["auto"] | Annotated[Int, Field(ge=1)]


def choice(registry: Mapping[str, object]) -> BeforeValidator:
    """Return a validator that permits the names of `registry`; the message is that of a Literal.

    As `quality: Annotated[str, choice(FILTERS)]`. The registry is read whenever a value is checked, so that an entry
    that is added later is permitted too.
    """

    def check(value: object) -> object:
        if isinstance(value, str) and value in registry:
            return value
        *first, last = [f"'{name}'" for name in registry]
        expected = f"{', '.join(first)} or {last}" if first else last
        raise PydanticKnownError("literal_error", {"expected": expected})

    return BeforeValidator(check)


class Section(BaseModel):
    """Base of a section of params.yaml: frozen, with defaults; unknown keys and wrong types are refused.

    Python code states the keys that differ (`ModelParams(n_layers=6)`), params.yaml states every key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Values = Mapping[str, Any]  # of params.yaml or a part of it: the sections by name, in each its keys
AnySection = TypeVar("AnySection", bound=Section)


def read_params(path: Path = Path("params.yaml")) -> dict[str, Any]:
    """Return the whole file as nested dictionaries, without retired keys.

    Raises ParameterError when it is missing or is not YAML.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ParameterError(f"{path} does not exist: run in the project's folder, where dvc.yaml lies") from None
    values = parse_params(content, str(path))
    for section, key in RETIRED:
        if isinstance(values.get(section), dict) and key in values[section]:
            del values[section][key]
            notify_once(f"{section}.{key} is no parameter any more and has no effect: remove its line")
    return values


def parse_params(content: bytes, name: str) -> dict[str, Any]:
    """Return YAML as nested dictionaries; `name` stands for it in messages. Raises ParameterError when it is none."""
    try:
        values = YAML(typ="safe", pure=True).load(content.decode("utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"{name} is not valid YAML: {_explain_yaml(error)}") from None
    if not isinstance(values, dict):
        raise ParameterError(f"{name} holds no sections: it must map section names to their values")
    return values


@functools.cache
def notify_once(line: str) -> None:
    """Print a notice on standard error, the first time in a process that it is given."""
    print(f"notice: {line}", file=sys.stderr)


def read_section(kind: type[AnySection], name: str, path: Path = Path("params.yaml")) -> AnySection:
    """Section `name` of params.yaml as a checked, frozen `kind`.

    Raises ParameterError with the dotted path, the value, the rule, and the nearest known key.
    """
    values = read_params(path)
    if name not in values:
        near = nearest(name, values)
        remedy = f"rename {near} to it" if near else f"write it; there are {', '.join(map(str, values))}"
        raise ParameterError(f"{path} has no section {name}: {remedy}")
    return parse_section(kind, name, values[name])


def parse_section(kind: type[AnySection], name: str, values: object) -> AnySection:
    """Return `values`, which must state every key, as a checked, frozen `kind`.

    `name` is the dotted path that messages begin with. Raises ParameterError.
    """
    if not isinstance(values, Mapping):
        raise ParameterError(f"{_show(name, values)}: must be a section with the keys {', '.join(kind.model_fields)}")
    values = {str(key): value for key, value in values.items()}  # YAML's keys may be numbers
    phrases = [f"{path} is missing: write it (an empty value means 'not set')" for path in _missing(kind, name, values)]
    try:
        section = kind.model_validate(values)
    except ValidationError as error:
        broken: dict[str, list[ErrorDetails]] = {}
        for detail in error.errors(include_url=False):
            if detail["type"] == "missing":  # of a key without default; named above
                continue
            broken.setdefault(_dotted_path(name, values, detail["loc"]), []).append(detail)
        phrases += [_explain(path, details, kind) for path, details in broken.items()]
    if phrases:
        raise ParameterError("; ".join(phrases))
    return section


def _missing(kind: type[Section], name: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the dotted paths of the keys that `values` do not state, also in sections within the section."""
    for key, field in kind.model_fields.items():
        inner = field.annotation
        if key not in values:
            yield f"{name}.{key}"
        elif isinstance(inner, type) and issubclass(inner, Section) and isinstance(values[key], Mapping):
            yield from _missing(inner, f"{name}.{key}", values[key])


def _explain(path: str, details: Sequence[ErrorDetails], kind: type[Section]) -> str:
    """What is wrong with one value.

    Example: `train.batch_sise=8: unknown key, did you mean train.batch_size?`. A union
    breaks one rule per member, and any of them would do: `must be 'auto' or true or false`.
    """
    value = details[0]["input"]
    match details[0]["type"]:
        case "extra_forbidden":
            section, _, key = path.rpartition(".")
            known = _find_section(kind, details[0]["loc"][:-1]).model_fields
            near = nearest(key, known)
            remedy = f"did you mean {section}.{near}?" if near else f"known keys: {', '.join(known)}"
            return f"{_show(path, value)}: unknown key, {remedy}"
        case "value_error":  # raised by a section's own rule, which names the keys that it compared
            return str(details[0]["ctx"]["error"])
        case _:
            rules = [RULES.get(detail["type"], detail["msg"].removeprefix("Input should be ")) for detail in details]
            near = nearest(str(value), [choice for rule in rules for choice in re.findall("'([^']*)'", rule)])
            hint = f", did you mean {near}?" if near else ""
            return f"{_show(path, value)}: must be {' or '.join(rules)}{hint}"


def _find_section(kind: type[Section], location: Iterable[int | str]) -> type[Section]:
    """The section within a section that a location leads to."""
    for part in location:
        inner = kind.model_fields[str(part)].annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            kind = inner
    return kind


def _dotted_path(name: str, values: object, location: Iterable[int | str]) -> str:
    """Where the value stands in params.yaml: ("prompts", 2) of section sample -> `sample.prompts[2]`.

    Pydantic adds the members of a union to a location; following the values themselves leaves those out.
    """
    for part in location:
        if isinstance(values, Mapping):
            name, values = f"{name}.{part}", values.get(part)
        elif isinstance(values, list) and isinstance(part, int):
            name, values = f"{name}[{part}]", values[part]
    return name


def _show(path: str, value: object) -> str:
    """`train.batch_size='eight'`, in one line however long the value is."""
    if value is None:
        return f"{path} is empty"
    text = repr(value)
    return f"{path}={text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + '...'}"


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested names become dotted: {"train": {"seed": 1}, "size": 2} -> {"train.seed": 1, "size": 2}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def _explain_yaml(error: YAMLError | UnicodeDecodeError) -> str:
    """The parser's complaint and its place in one line."""
    if isinstance(error, MarkedYAMLError) and error.problem and error.problem_mark:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


@dataclass(frozen=True)
class Change:
    """A key that gets another value; `key` is dotted where it is within a section of the section."""

    section: str
    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.section}.{self.key}: {show_value(self.old)} -> {show_value(self.new)}"


def compare_values(old: Values, new: Values) -> list[Change]:
    """What differs between `old` and `new`, for every key of every section of `new`."""
    return [
        change
        for section, values in new.items()
        for change in _compare_keys(section, "", old.get(section) or {}, values)
    ]


def _compare_keys(section: str, prefix: str, old: Values, new: Values) -> Iterator[Change]:
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping) and value.keys() == before.keys():
            yield from _compare_keys(section, f"{prefix}{key}.", before, value)
        elif key not in old or before != value or isinstance(before, bool) != isinstance(value, bool):  # True == 1
            yield Change(section, f"{prefix}{key}", before, value)


def show_value(value: object) -> str:
    """A value as it stands in params.yaml, in one line: true, 6e-05, tail, ["def ", "O, "]; `empty` for nothing."""
    return spell_yaml(value) or "empty"


def spell_yaml(value: object) -> str:
    """Return a value as YAML in one line; nothing for None, which params.yaml leaves empty."""
    if value is None:
        return ""
    is_plain = isinstance(value, str) and PLAIN_TEXT.fullmatch(value)
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)  # JSON is YAML
