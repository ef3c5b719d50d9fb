"""Recipes: differences from the default parameters, for whole situations, and the cost of each on this machine."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcore.commands.edit_params import rewrite_file
from lmcore.commands.forecast import EXPLANATION, forecast, measure_size
from lmcore.download.params import DownloadParams
from lmcore.encode.params import EncodeParams
from lmcore.errors import ArtifactError, LmcoreError, ParameterError, suggest
from lmcore.evaluate.params import EvaluateParams
from lmcore.export.params import ExportParams
from lmcore.generate.params import SampleParams
from lmcore.hardware.params import HardwareParams
from lmcore.model.hf_architecture import explain_misfit, hugging_face_architecture
from lmcore.model.params import ModelParams
from lmcore.params import Section, parse_section, read_params
from lmcore.prepare.params import PrepareParams
from lmcore.runtime.progress import say, show_bytes, show_count, show_duration, warn
from lmcore.train.params import TrainParams
from lmcore.train_tokenizer.params import TokenizerParams

SECTIONS: dict[str, type[Section]] = {
    "download": DownloadParams,
    "prepare": PrepareParams,
    "train_tokenizer": TokenizerParams,
    "encode": EncodeParams,
    "model": ModelParams,
    "train": TrainParams,
    "evaluate": EvaluateParams,
    "sample": SampleParams,
    "export": ExportParams,
    "hardware": HardwareParams,
}
# The keys that a recipe sets: as it states them, the others to their defaults. None is every key of the section.
# `download` is set only by a recipe that has the section, be it empty: else the corpus stays the user's.
GOVERNED: dict[str, set[str] | None] = {
    "download": None,
    "prepare": {"split", "validation_fraction"},
    "train_tokenizer": None,
    "model": None,
    "train": None,
    "sample": {"prompts", "decoder"},
    "export": {"name"},
}
ROW = "{:20}  {:>10}  {:>7}  {:>16}  {:>9}  {}"


@dataclass(frozen=True)
class Recipe:
    """The values that a recipe writes: those it states, and the defaults of the others in GOVERNED."""

    name: str
    purpose: str  # the first line of the file's comment
    values: dict[str, dict[str, Any]]


def list_recipes(folder: Path) -> list[Recipe]:
    """The recipes in `folder`, by name. Raises ArtifactError if there are none."""
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise ArtifactError(f"{folder} holds no recipes: run in the project's folder, where dvc.yaml lies")
    return [read_recipe(path) for path in paths]


def find_recipe(name: str, folder: Path) -> Recipe:
    """The recipe called `name` in `folder`, or the file `name` if that ends with .yaml. Raises ParameterError."""
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        hint = suggest(path.stem.lower(), known)
        raise ParameterError(
            f"recipe {name!r}:{hint} must be one of {', '.join(known)}, or a file of your own that ends with .yaml"
        )
    return read_recipe(path)


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in `path`. Raises ParameterError when it is none; `overlay_values` checks its values."""
    content = path.read_bytes()
    stated = read_params(path) if re.search(rb"^[^#\s]", content, re.MULTILINE) else {}  # comments alone
    for section, changed in stated.items():
        if section not in SECTIONS:
            remedy = suggest(str(section), SECTIONS, "known sections:")
            raise ParameterError(f"{path}: {section}: unknown section,{remedy}")
        if not isinstance(changed, dict):
            raise ParameterError(f"{path}: {section}: must be a section with some of its keys, or {{}}")
    comment = re.match("# *(.*)", content.decode("utf-8"))
    values = {
        section: _add_defaults(section, stated.get(section, {}))
        for section in SECTIONS
        if section in stated or (section in GOVERNED and section != "download")
    }
    return Recipe(path.stem, comment[1] if comment else "", values)


def _add_defaults(section: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values stated, and the default of each other key that a recipe sets, as params.yaml states it."""
    values: dict[str, Any] = {}
    for key, field in SECTIONS[section].model_fields.items():
        if (governed := GOVERNED.get(section, set())) is None or key in governed:
            default = field.get_default(call_default_factory=True)
            values[key] = default.model_dump() if isinstance(default, Section) else default
    for key, value in stated.items():
        within = values.get(key)
        values[key] = {**within, **value} if isinstance(within, dict) and isinstance(value, dict) else value
    return values


def overlay_values(values: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return `values` (all of params.yaml) with the recipe's. Raises ParameterError if the result is not valid."""
    result = {**values}
    for section, changed in recipe.values.items():
        present = values.get(section)
        result[section] = {**present, **changed} if isinstance(present, dict) else changed
    try:
        for section, kind in SECTIONS.items():
            parse_section(kind, section, result.get(section))
        measure_size(result)
    except LmcoreError as error:
        raise ParameterError(f"recipe {recipe.name} over params.yaml: {error}") from None
    return result


def apply_recipe(recipe: Recipe, path: Path, *, dry_run: bool = False) -> None:
    """Write the recipe's values into the params.yaml at `path`, nothing else, and print what changes.

    Raises ParameterError, and writes nothing, if the result would not be valid.
    """
    result = overlay_values(read_params(path), recipe)
    changes = rewrite_file(path, result, dry_run=dry_run)
    for change in changes:
        say(str(change))
    model = parse_section(ModelParams, "model", result["model"])
    if hugging_face_architecture(model) is None:
        warn(f"the export stage will refuse this model: {explain_misfit(model)}")
    if "download" not in recipe.values:
        download = parse_section(DownloadParams, "download", result["download"])
        origin = next(key for key in ("mix", "path", "url", "source") if getattr(download, key))
        say(f"recipe {recipe.name} leaves the corpus to you: download.{origin}={getattr(download, origin)} stays")
    if not changes:
        say(f"params.yaml is recipe {recipe.name} already")
    elif dry_run:
        say("nothing is written (--dry-run)")
    else:
        say(f"params.yaml is recipe {recipe.name} now: dvc repro runs it")


def tabulate_recipes(recipes: list[Recipe], values: Mapping[str, Any]) -> Iterator[str]:
    """A line for each recipe over `values`, those that cost least first; below, how the times are estimated.

    Instead of its purpose, one that does not run here has the reason.
    """
    overlaid = [(recipe, overlay_values(values, recipe)) for recipe in recipes]
    yield ROW.format("recipe", "parameters", "tokens", "memory", "time", "for")
    for recipe, result in sorted(overlaid, key=lambda pair: measure_size(pair[1]).flops or 0.0):
        size = measure_size(result)
        start = (recipe.name, show_count(size.parameters), show_count(size.tokens))
        try:
            predicted = forecast(result)
        except LmcoreError as error:
            yield ROW.format(*start, "", "", f"does not run here: {error}")
            continue
        memory = show_bytes(predicted.memory.total) + (", too much" if predicted.obstacle else "")
        yield ROW.format(*start, memory, show_duration(predicted.seconds), recipe.purpose)
    yield f"memory and time are estimated for this machine: {EXPLANATION}"
