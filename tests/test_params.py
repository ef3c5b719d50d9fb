"""Parameters: the values that DVC reads, and every mistake answered in one line."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from dvc.utils.hydra import apply_overrides  # type: ignore[import-untyped]
from dvc.utils.serialize import load_yaml  # type: ignore[import-untyped]
from pydantic import Field

from lmcore.errors import ParameterError
from lmcore.model.params import ModelParams
from lmcore.params import Int, Section, choice, flatten, parse_section, read_params, read_section
from lmcore.train.params import LENGTHS, TrainParams

OVENS: dict[str, object] = {"gas": object(), "electric": object()}


class Cooking(Section):
    """One key of every type that the sections use."""

    minutes: Int = Field(ge=1)
    guests: Int | None = Field(ge=1)
    heat: float
    salt: float | None = Field(gt=0, le=1)
    lid: bool
    dish: str
    spices: list[str]
    stove: Literal["gas", "electric"]
    timer: Literal["auto"] | bool | None
    oven: Annotated[str, choice(OVENS)]
    grill: Annotated[str, choice(OVENS)] | None


VALUES: dict[str, Any] = {
    "minutes": 30,
    "guests": None,
    "heat": 0.5,
    "salt": 0.1,
    "lid": True,
    "dish": "soup",
    "spices": ["dill", "salt"],
    "stove": "gas",
    "timer": "auto",
    "oven": "gas",
    "grill": None,
}

# YAML 1.2 as DVC reads it. PyYAML's YAML 1.1 has most of these otherwise.
AS_DVC_READS: dict[str, Any] = {
    "6e-05": 6e-05,
    "1e4": 10000.0,
    "1e+4": 10000.0,
    "1.5e3": 1500.0,
    ".5": 0.5,
    "-.inf": -math.inf,
    "10_000": 10000,
    "010": 10,
    "0o10": 8,
    "0x1F": 31,
    "12:30": "12:30",
    "no": "no",
    "on": "on",
    "yes": "yes",
    "true": True,
    "null": None,
    "~": None,
    "": None,
    "'6e-05'": "6e-05",
}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("text", "value"), AS_DVC_READS.items())
def test_values_are_read_as_dvc_reads_them(tmp_path: Path, text: str, value: object) -> None:
    path = write(tmp_path / "params.yaml", f"section:\n  key: {text}\n")
    read = read_params(path)["section"]["key"]
    assert (read, type(read)) == (value, type(value))
    assert load_yaml(str(path))["section"]["key"] == value


@pytest.mark.parametrize(
    ("override", "value"),
    [("heat=0.00006", 6e-05), ("heat=1e-3", 0.001), ("minutes=1e4", 10_000), ("guests=8", 8), ("guests=null", None)],
)
def test_what_an_experiment_writes_is_read_back(tmp_path: Path, override: str, value: object) -> None:
    lines = [f"  {key}: {'' if value is None else value}" for key, value in VALUES.items()]
    path = write(tmp_path / "params.yaml", "\n".join(["cooking:", *lines]))
    apply_overrides(path, [f"cooking.{override}"])  # what `dvc exp run -S` does
    cooking = read_section(Cooking, "cooking", path)
    assert getattr(cooking, override.partition("=")[0]) == value


def test_nested_names_become_dotted() -> None:
    assert flatten({"train": {"seed": 1}, "tokenizer": "ab"}) == {"train.seed": 1, "tokenizer": "ab"}


def test_a_whole_float_is_an_integer() -> None:
    cooking = parse_section(Cooking, "cooking", {**VALUES, "minutes": 1e4, "heat": 2})
    assert (cooking.minutes, type(cooking.minutes)) == (10_000, int)
    assert (cooking.heat, type(cooking.heat)) == (2.0, float)


MISTAKES: list[tuple[dict[Any, Any], str]] = [
    ({"minutes": 2.5}, "cooking.minutes=2.5: must be a whole number"),
    ({"minutes": True}, "cooking.minutes=True: must be a whole number"),
    ({"minutes": "8"}, "cooking.minutes='8': must be a whole number"),
    ({"minutes": math.inf}, "cooking.minutes=inf: must be a whole number"),
    ({"minutes": None}, "cooking.minutes is empty: must be a whole number"),
    ({"minutes": 0}, "cooking.minutes=0: must be greater than or equal to 1"),
    ({"minutes": 0.0}, "cooking.minutes=0: must be greater than or equal to 1"),
    ({"guests": "many"}, "cooking.guests='many': must be a whole number"),
    ({"guests": True}, "cooking.guests=True: must be a whole number"),
    ({"heat": "6e-05"}, "cooking.heat='6e-05': must be a number"),
    ({"heat": True}, "cooking.heat=True: must be a number"),
    ({"heat": math.nan}, "cooking.heat=nan: must be a finite number"),
    ({"salt": math.inf}, "cooking.salt=inf: must be a finite number"),
    ({"salt": 2}, "cooking.salt=2: must be less than or equal to 1"),
    ({"lid": "no"}, "cooking.lid='no': must be true or false"),
    ({"lid": 1}, "cooking.lid=1: must be true or false"),
    ({"dish": 10}, "cooking.dish=10: must be text"),
    ({"dish": ["two\nlines" * 90]}, r"cooking\.dish=\['two\\nlines.{70,100}\.\.\.: must be text"),
    ({"spices": "dill"}, "cooking.spices='dill': must be a list"),
    ({"spices": ["dill", 5]}, r"cooking\.spices\[1\]=5: must be text"),
    ({"stove": "electrik"}, "cooking.stove='electrik': must be 'gas' or 'electric', did you mean electric\\?"),
    ({"stove": 220}, "cooking.stove=220: must be 'gas' or 'electric'"),
    ({"timer": "no"}, "cooking.timer='no': must be 'auto' or true or false"),
    ({"oven": "electrik"}, "cooking.oven='electrik': must be 'gas' or 'electric', did you mean electric\\?"),
    ({"oven": ["wood"]}, r"cooking\.oven=\['wood'\]: must be 'gas' or 'electric'"),
    ({"oven": None}, "cooking.oven is empty: must be 'gas' or 'electric'"),
    ({"grill": 220}, "cooking.grill=220: must be 'gas' or 'electric'"),
    ({"minuts": 8}, "cooking.minuts=8: unknown key, did you mean cooking.minutes\\?"),
    ({"xyz": 8}, "cooking.xyz=8: unknown key, known keys: minutes, guests, heat, .*, grill"),
    ({7: 8}, "cooking.7=8: unknown key, known keys: minutes, .*"),
    ({"lid": 1, "dish": 10}, "cooking.lid=1: must be true or false; cooking.dish=10: must be text"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_a_mistake_is_one_line_with_path_value_and_rule(change: dict[Any, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{message}$") as caught:
        parse_section(Cooking, "cooking", {**VALUES, **change})
    assert len(str(caught.value).splitlines()) == 1


def test_an_entry_that_is_added_to_a_registry_is_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OVENS, "wood", object())
    assert parse_section(Cooking, "cooking", {**VALUES, "oven": "wood", "grill": "wood"}).oven == "wood"
    message = r"^cooking\.oven='wod': must be 'gas', 'electric' or 'wood', did you mean wood\?$"
    with pytest.raises(ParameterError, match=message):
        parse_section(Cooking, "cooking", {**VALUES, "oven": "wod"})


@pytest.mark.parametrize("key", VALUES)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ParameterError, match=f"^cooking.{key} is missing: write it [^;]*$"):
        parse_section(Cooking, "cooking", {name: value for name, value in VALUES.items() if name != key})


def test_code_states_what_differs_and_params_yaml_every_key() -> None:
    model = ModelParams(n_layers=6, d_model=384)
    assert (model.n_layers, model.d_model, model.n_heads) == (6, 384, ModelParams().n_heads)
    values = model.model_dump()
    assert parse_section(ModelParams, "model", values) == model
    del values["dropout"], values["diffusion"]["weight"]
    with pytest.raises(ParameterError, match=r"^model\.dropout is missing: .*; model\.diffusion\.weight is missing: "):
        parse_section(ModelParams, "model", values)


@pytest.mark.parametrize("length", [{"max_tokens": 100}, {"epochs": 2.0}, {"max_steps": None, "epochs": 1.0}])
def test_one_length_of_a_training_replaces_the_default(length: dict[str, Any]) -> None:
    params = TrainParams(**length)
    assert {name: getattr(params, name) for name in LENGTHS} == dict.fromkeys(LENGTHS) | length


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("coking:\n  minutes: 1\n", "has no section cooking: rename coking to it"),
        ("hats:\n  red: 1\n", "has no section cooking: write it; there are hats"),
        ("cooking:\n", "cooking is empty: must be a section with the keys minutes, "),
        ("cooking: 3\n", "cooking=3: must be a section with the keys minutes, "),
        ("", "holds no sections"),
        ("- cooking\n", "holds no sections"),
        ("cooking:\n  minutes: [1\n", "is not valid YAML: line 3, column 1: expected ',' or ']'"),
        ("cooking:\n  lid: true\n  lid: false\n", 'is not valid YAML: line 3, column 3: found duplicate key "lid"'),
        ("cooking:\n\tlid: true\n", "is not valid YAML: line 2, column 1: found character"),
        ("cooking: !python/none\n", "is not valid YAML: line 1, column 10: could not determine a constructor"),
        ("cooking: \x01\n", "is not valid YAML: unacceptable character"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "params.yaml", text)
    with pytest.raises(ParameterError) as caught:
        read_section(Cooking, "cooking", path)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"params.yaml does not exist: run in the project's folder"):
        read_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ParameterError, match=r"params.yaml is not valid YAML: 'utf-8' codec"):
        read_params(tmp_path / "params.yaml")


def test_sections_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_section(Cooking, "cooking", VALUES).minutes = 1  # type: ignore[misc]
