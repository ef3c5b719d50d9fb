"""New values in a YAML file whose other characters stay."""

from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides  # type: ignore[import-untyped]
from ruamel.yaml import YAML

from lmcore.commands.edit_params import rewrite, rewrite_file
from lmcore.errors import ParameterError
from lmcore.params import Change, compare_values, show_value


def test_any_style_stays() -> None:
    text = "a:\r\n    x:   1   # one\r\n    'y': 'two' # 2\r\n    z: [1,  2]\r\n    n: ~\r\nb: {p: 1, q: 2}\r\n"
    changes = [Change("a", "y", "two", "no"), Change("a", "n", None, 5), Change("b", "p", 1, None)]
    rewritten = rewrite(text, changes)
    assert rewritten == text.replace("'two' # 2", '"no"  # 2').replace("n: ~", "n: 5").replace("p: 1", "p:")
    assert rewrite(text, [Change("a", "z", [1, 2], ["x"])]) == text.replace("[1,  2]", '["x"]')


def test_lists_as_dvc_writes_them() -> None:
    text = 'a:\n  x:  # many\n  - "1"  # first\n  - |\n    two\n\n  y: 1\n'
    assert rewrite(text, [Change("a", "x", None, ["3", ""])]) == 'a:\n  x:  # many\n  - "3"\n  - ""\n\n  y: 1\n'


def test_mappings_are_written_as_dvc_does_and_taken_out_again(tmp_path: Path) -> None:
    text = "a:\n  x:    # names\n  y: 2  # two\n"
    mixture = {"stdlib": 0.7, "own": 2}
    mixed = rewrite(text, [Change("a", "x", None, mixture)])
    (tmp_path / "params.yaml").write_text(text)
    apply_overrides(tmp_path / "params.yaml", ["a.x={stdlib:0.7,own:2}"])
    assert mixed == (tmp_path / "params.yaml").read_text()
    assert rewrite(mixed, [Change("a", "x", mixture, None)]) == text
    other = rewrite(mixed, [Change("a", "x", mixture, {"own": 1}), Change("a", "y", 2, 3)])
    assert other == "a:\n  x:    # names\n    own: 1\n  y: 3  # two\n"
    assert rewrite("a:\n  x: {p: 1}  # one\n", [Change("a", "x", {"p": 1}, None)]) == "a:\n  x:         # one\n"


def test_a_comment_keeps_its_column_if_there_is_room() -> None:
    text = "a:\n  x: 1      # one\n  y: 2      # two\n"
    assert rewrite(text, [Change("a", "x", 1, 123456)]) == "a:\n  x: 123456 # one\n  y: 2      # two\n".replace(
        "6 #", "6  #"
    )
    assert rewrite(text, [Change("a", "x", 1, None)]) == "a:\n  x:        # one\n  y: 2      # two\n"


def test_an_anchor_is_refused(tmp_path: Path) -> None:
    path, text = tmp_path / "params.yaml", "a:\n  x: &nine 0.9\n  y: *nine\n"
    path.write_text(text)
    with pytest.raises(ParameterError, match=r"cannot be changed in place: .* a.x: 0.9 -> 0.8$"):
        rewrite_file(path, {"a": {"x": 0.8, "y": 0.9}})
    assert path.read_text() == text


def test_a_name_with_a_dot_is_found(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a:\n  mixture:\n    wiki.en: 1  # much\n    own: 1\n")
    (change,) = rewrite_file(path, {"a": {"mixture": {"wiki.en": 2, "own": 1}}})
    assert str(change) == "a.mixture.wiki.en: 1 -> 2"
    assert path.read_text() == "a:\n  mixture:\n    wiki.en: 2  # much\n    own: 1\n"


@pytest.mark.parametrize("value", [None, True, 1, 6e-05, 1e22, "hash", "no", "1", "", "a: b", "é\n#", "~", "x y"])
def test_values_read_as_they_were_meant(value: object) -> None:
    text = rewrite("a:\n  x: 0  # zero\n", [Change("a", "x", 0, value)])
    assert YAML(typ="safe", pure=True).load(text) == {"a": {"x": value}}
    assert show_value(value)


def test_true_is_not_one() -> None:
    assert compare_values({"a": {"x": 1}}, {"a": {"x": True}})
    assert not compare_values({"a": {"x": 1}}, {"a": {"x": 1.0}})
