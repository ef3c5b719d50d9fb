"""Recipes: valid differences from the defaults, results that no earlier recipe shows in, the page that lists them."""

import functools
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides  # type: ignore[import-untyped]
from imports import ROOT
from ruamel.yaml import YAML

from lmcore.commands import forecast
from lmcore.commands.edit_params import rewrite
from lmcore.commands.forecast import measure_size
from lmcore.commands.recipes import (
    SECTIONS,
    Recipe,
    apply_recipe,
    find_recipe,
    list_recipes,
    overlay_values,
    tabulate_recipes,
)
from lmcore.errors import ArtifactError, ParameterError
from lmcore.hardware.params import Precision
from lmcore.hardware.resolve import Hardware
from lmcore.model.params import ModelParams
from lmcore.params import compare_values, flatten, notify_once, parse_section, read_params
from lmcore.runtime.progress import show_bytes, show_count, show_duration
from lmcore.train.memory import FILLED, choose_micro_batch, estimate_memory
from lmcore.train.params import TrainParams

FOLDER = ROOT / "recipes"
RECIPES = list_recipes(FOLDER)
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
COMMITTED = read_params(ROOT / "params.yaml")
LAID = {recipe.name: overlay_values(COMMITTED, recipe) for recipe in RECIPES}  # over the committed params.yaml
load_yaml = YAML(typ="safe", pure=True).load
ON_CPU = {**COMMITTED, "hardware": {**COMMITTED["hardware"], "profile": "cpu"}}
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """A copy of params.yaml."""
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose speed is known."""
    monkeypatch.setattr(forecast, "measure_peak", lambda *_: 1e12)


def recipe_of(tmp_path: Path, text: str) -> Recipe:
    (tmp_path / "mine.yaml").write_text(text)
    return find_recipe(str(tmp_path / "mine.yaml"), tmp_path)


class TestOfTheProject:
    @each_recipe
    def test_has_a_purpose_and_a_figure(self, recipe: Recipe) -> None:
        lines = (FOLDER / f"{recipe.name}.yaml").read_text().splitlines()
        comment = list(itertools.takewhile(lambda line: line.startswith("# "), lines))
        assert len(comment) == 2, "what it is for, and what it is known to reach"
        assert all(line.endswith(".") for line in comment)
        assert recipe.purpose == comment[0].removeprefix("# ")

    @each_recipe
    def test_states_no_value_that_is_the_default(self, recipe: Recipe) -> None:
        stated = load_yaml((ROOT / "recipes" / f"{recipe.name}.yaml").read_text()) or {}
        defaults = flatten(COMMITTED)
        same = [key for key, value in flatten(stated).items() if value == defaults[key]]
        assert not same, "leave these keys out"
        assert "hardware" not in stated, "a recipe is for every machine"

    @each_recipe
    def test_what_came_before_leaves_nothing(self, recipe: Recipe) -> None:
        """Neither another recipe nor the recipe itself; but the corpus where the recipe leaves that to the user."""
        for before in LAID.values():
            corpus = LAID[recipe.name] if "download" in recipe.values else before
            assert overlay_values(before, recipe) == {**LAID[recipe.name], "download": corpus["download"]}

    def test_a_new_parameter_touches_no_recipe(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Later(TrainParams):
            """With a parameter more."""

            patience: int = 3

        monkeypatch.setitem(SECTIONS, "train", Later)
        assert find_recipe("nano", FOLDER).values["train"]["patience"] == 3

    @pytest.mark.parametrize("text", ["", "# Nothing differs.\n\n  # Nothing.\n", "{}\n"])
    def test_a_recipe_without_differences_is_the_defaults(self, tmp_path: Path, text: str) -> None:
        recipe = recipe_of(tmp_path, text)
        corpus = LAID["shakespeare-char"]["download"]
        assert overlay_values(LAID["shakespeare-char"], recipe) == {**COMMITTED, "download": corpus}
        assert overlay_values(LAID["shakespeare-char"], find_recipe("small", FOLDER)) == COMMITTED

    def test_what_is_not_governed_stays_unless_it_is_stated(self, tmp_path: Path) -> None:
        changed = {**COMMITTED, "sample": {**COMMITTED["sample"], "temperature": 0.1, "decoder": "tidar", "seed": 7}}
        sample = overlay_values(changed, recipe_of(tmp_path, "sample: {seed: 5}\n"))["sample"]
        assert sample == {**COMMITTED["sample"], "temperature": 0.1, "seed": 5}

    def test_a_recipe_of_an_earlier_version_states_everything(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Every key of its sections, and one that is retired since."""
        notify_once.cache_clear()
        whole = {**find_recipe("tidar", FOLDER).values, "evaluate": {"python_samples": 64}}
        recipe = recipe_of(tmp_path, json.dumps(whole))
        assert overlay_values(LAID["web-1b"], recipe) == LAID["tidar"]
        assert len(capsys.readouterr().err.splitlines()) == 1

    def test_small_is_what_a_fresh_clone_has(self) -> None:
        assert not compare_values(COMMITTED, LAID["small"])

    @pytest.mark.parametrize(
        ("name", "parameters", "source"),
        [
            ("gpt2-124m", 124_337_664, "GPT-2's 124,439,808 without the 102,144 biases, as nanoGPT"),
            ("gpt2-medium", 354_551_808, "GPT-2 medium's 354,823,168 without the 271,360 biases"),
        ],
    )
    def test_published_sizes(self, name: str, parameters: int, source: str) -> None:
        size = measure_size(LAID[name])
        assert size.parameters == parameters, source
        assert size.tokens == 600_000 * 491_520, "nanoGPT's config/train_gpt2.py"

    @pytest.mark.parametrize("name", ["web-1b", "3b"])
    def test_about_twenty_tokens_per_parameter(self, name: str) -> None:
        size = measure_size(LAID[name])
        assert size.tokens == pytest.approx(20 * size.parameters, rel=0.03)

    @pytest.mark.parametrize(
        ("name", "device", "precision", "memory"),
        [
            ("low-end-pc", "cpu", "fp32", 8e9),
            ("mid-range-pc", "cuda", "bf16", 12e9),
            ("high-end-pc", "cuda", "bf16", 24e9),
        ],
    )
    def test_fits_the_machine_that_it_is_for(self, name: str, device: str, precision: Precision, memory: float) -> None:
        values = LAID[name]
        model, train = parse_section(ModelParams, "model", values["model"]), TrainParams.model_validate(values["train"])

        hardware = Hardware(name, device, precision, train.batch_size, compile=False, compile_reason="", threads=1)
        vocab_size = values["train_tokenizer"]["vocab_size"]
        estimate = functools.partial(estimate_memory, params=train, model_params=model, vocab_size=vocab_size)
        limit = int(FILLED[device] * memory)
        size = choose_micro_batch(estimate, hardware, limit)
        assert estimate(replace(hardware, micro_batch_size=size)).total <= limit
        assert size >= 4, "with room for a batch that keeps the device busy"


class TestTheListing:
    @pytest.mark.usefixtures("quick")
    def test_has_a_line_for_each_that_costs_least_first(self) -> None:
        heading, *lines, explanation = tabulate_recipes(RECIPES, ON_CPU)
        assert heading.split() == ["recipe", "parameters", "tokens", "memory", "time", "for"]
        assert {line.split()[0] for line in lines} == {recipe.name for recipe in RECIPES}
        assert [line.split()[0] for line in lines[:1] + lines[-1:]] == ["nano", "3b"]
        (medium,) = (line for line in lines if line.startswith("gpt2-medium"))
        assert "355 M" in medium
        assert "295 B" in medium
        assert "50 years" in medium, "6 x 354.6e6 x 294.9e9 operations at 0.4e12 a second are 49.7 years"
        assert "estimated" in explanation
        assert "40%" in explanation

    @pytest.mark.usefixtures("quick")
    def test_what_does_not_fit_here_is_said_in_its_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lmcore.train.memory.available_memory", lambda *_: int(2e9))
        _, *lines, _ = tabulate_recipes(RECIPES, ON_CPU)
        assert {line.split()[0] for line in lines if "GB, too much" in line} >= {"gpt2-medium", "web-1b", "3b"}
        assert not [line for line in lines if line.startswith("nano") and "too much" in line]

    @pytest.mark.usefixtures("quick")
    def test_what_does_not_run_here_is_said_in_its_line(self) -> None:
        values = {**ON_CPU, "hardware": {**ON_CPU["hardware"], "profile": "nothing"}}
        lines = list(tabulate_recipes([find_recipe("nano", FOLDER)], values))
        assert "does not run here: hardware.profile='nothing': must be auto or a row of profiles" in lines[1]

    @pytest.mark.usefixtures("quick")
    def test_a_number_of_epochs_needs_the_corpus_to_be_known(self, tmp_path: Path) -> None:
        recipe = recipe_of(tmp_path, "# Twice.\ntrain:\n  max_steps:\n  epochs: 2\n")
        _, line, _ = tabulate_recipes([recipe], ON_CPU)
        assert re.search(r"M +\? .* \? +Twice\.$", line)

    def test_a_folder_without_recipes(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"holds no recipes: run in the project's folder"):
            list_recipes(tmp_path)

    def test_the_page_is_the_recipes(self) -> None:
        sizes = {name: measure_size(values) for name, values in LAID.items()}
        purposes = {recipe.name: recipe.purpose for recipe in RECIPES}
        rows = [
            f"| `{name}` | {show_count(size.parameters)} | {show_count(size.tokens)} | {size.flops:.1e} | "
            f"{purposes[name]} |"
            for name, size in sorted(sizes.items(), key=lambda item: item[1].flops or 0.0)
        ]
        page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").splitlines()
        table = [line for line in page if line.startswith("| `")]
        assert table == rows, "\n".join(["", "=> the rows of the table in docs/recipes.md:", *rows])


class TestApplying:
    @each_recipe
    def test_changes_its_own_lines_alone_and_there_is_a_way_back(self, recipe: Recipe) -> None:
        changes = compare_values(COMMITTED, LAID[recipe.name])
        written = rewrite(TEXT, changes)
        assert load_yaml(written) == LAID[recipe.name]
        assert rewrite(written, compare_values(LAID[recipe.name], COMMITTED)) == TEXT
        before, after = (
            [line for line in text.splitlines() if not line.startswith("    - ")] for text in (TEXT, written)
        )
        assert [line.partition(" # ")[2] for line in after] == [line.partition(" # ")[2] for line in before]
        changed = [new.split(":")[0].strip() for old, new in zip(before, after, strict=True) if old != new]
        assert changed == [change.key.rpartition(".")[2] for change in changes if not isinstance(change.new, list)]

    def test_twice_writes_nothing(self, params: Path, capsys: pytest.CaptureFixture[str]) -> None:
        nano = find_recipe("nano", FOLDER)
        apply_recipe(nano, params)
        assert read_params(params) == LAID["nano"]
        once = params.stat()
        apply_recipe(nano, params)
        assert (params.stat().st_ino, params.stat().st_mtime_ns) == (once.st_ino, once.st_mtime_ns)
        assert capsys.readouterr().out.splitlines()[-1] == "params.yaml is recipe nano already"

    def test_the_difference_is_shown_and_a_dry_run_writes_nothing(
        self, params: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = params.read_bytes()
        apply_recipe(find_recipe("shakespeare-char", FOLDER), params, dry_run=True)
        lines = capsys.readouterr().out.splitlines()
        assert params.read_bytes() == before
        assert "train.batch_size: 4 -> 64" in lines
        assert "train_tokenizer.vocab_size: 2048 -> empty" in lines
        assert "model.qk_norm: true -> false" in lines
        assert 'sample.prompts: ["def ", "import os\\n", ' in next(line for line in lines if "prompts" in line)
        assert lines[-1] == "nothing is written (--dry-run)"

    def test_a_model_that_cannot_be_exported_is_a_warning(
        self, params: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        apply_recipe(find_recipe("speedrun-cpu", FOLDER), params)
        assert "warning: the export stage will refuse this model: no Hugging Face" in capsys.readouterr().err

    def test_a_recipe_without_a_corpus_says_which_one_stays(
        self, params: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        apply_recipe(find_recipe("web-1b", FOLDER), params)
        assert "leaves the corpus to you: download.source=stdlib stays" in capsys.readouterr().out

    def test_a_file_of_ones_own(self, params: Path, tmp_path: Path) -> None:
        apply_recipe(recipe_of(tmp_path, "train:\n  learning_rate: 1e-5\n  seed: 1e3\n"), params)
        text = params.read_text(encoding="utf-8")
        assert "\n  learning_rate: 1e-05        # at the end of the warm-up\n" in text
        assert read_params(params)["train"]["seed"] == 1000

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("trian:\n  seed: 2\n", "mine.yaml: trian: unknown section, did you mean train\\?"),
            ("profiles:\n  cpu:\n", "mine.yaml: profiles: unknown section, known sections: download, "),
            ("train: 3\n", "mine.yaml: train: must be a section with some of its keys, or {}"),
            (
                "train:\n  sed: 2\n",
                "recipe mine over params.yaml: train.sed=2: unknown key, did you mean train.seed\\?",
            ),
            ("train:\n  seed: -1\n", "recipe mine over params.yaml: train.seed=-1: must be greater than or equal to 0"),
            ("train:\n  max_tokens: 5\n", "recipe mine .*train.max_steps=1800, train.max_tokens=5 set: exactly one"),
            ("train:\n  max_steps: 9\n", "recipe mine .*train.warmup_steps=100: must be below the run's 9 steps"),
            ("model:\n  n_heads: 3\n", "recipe mine .*model.d_model=128: must be divisible by model.n_heads=3"),
            ("train:\n  seed: [1\n", "mine.yaml is not valid YAML: line 3"),
            ("- train\n", "mine.yaml holds no sections"),
        ],
    )
    def test_what_is_not_valid_is_not_written(self, params: Path, tmp_path: Path, text: str, message: str) -> None:
        before = params.read_bytes()
        with pytest.raises(ParameterError, match=message) as caught:
            apply_recipe(recipe_of(tmp_path, text), params)
        assert len(str(caught.value).splitlines()) == 1
        assert params.read_bytes() == before

    def test_a_params_file_that_is_broken_or_lacks_a_key(self, params: Path) -> None:
        nano = find_recipe("nano", FOLDER)
        text = params.read_text(encoding="utf-8")
        params.write_text(re.sub("  ema_decay:.*\n", "", text), encoding="utf-8")
        with pytest.raises(
            ParameterError, match=r"params.yaml has no train.ema_decay: write the line `ema_decay: ` in"
        ):
            apply_recipe(nano, params)
        params.write_text(text.replace("train:\n", "train: [\n"), encoding="utf-8")
        with pytest.raises(ParameterError, match="is not valid YAML"):
            apply_recipe(nano, params)

    @pytest.mark.parametrize(
        ("name", "near"), [("nnao", "nano"), ("shakespear-char", "shakespeare-char"), ("3B", "3b")]
    )
    def test_an_unknown_name_is_answered_with_the_nearest(self, name: str, near: str) -> None:
        with pytest.raises(ParameterError, match=f"^recipe '{name}': did you mean {near}\\? must be one of 3b, base, "):
            find_recipe(name, FOLDER)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match=r"^recipe '.*/absent.yaml': must be one of .*, or a file of your own"):
            find_recipe(str(tmp_path / "absent.yaml"), FOLDER)


class TestRewriting:
    def test_after_an_experiment_too_only_the_recipes_lines_change(self, params: Path) -> None:
        """`dvc exp run -S` leaves lists in another indentation."""
        apply_overrides(params, ["train.seed=5"])
        before = params.read_text(encoding="utf-8").splitlines()
        assert any(line.startswith("  - ") for line in before)
        apply_recipe(find_recipe("nano", FOLDER), params)
        after = params.read_text(encoding="utf-8").splitlines()
        changed = {line.split(":")[0].strip() for old, line in zip(before, after, strict=True) if old != line}
        assert changed == {"seed", *(change.key for change in compare_values(COMMITTED, LAID["nano"]))}

    def test_a_section_within_a_section(self, params: Path, tmp_path: Path) -> None:
        before = params.read_text()
        apply_recipe(recipe_of(tmp_path, "# Masks.\nmodel: {diffusion: {block_size: 4}}\n"), params)
        changed = {*params.read_text().splitlines()} - {*before.splitlines()}
        assert re.match(r"    block_size: 4 +# masks in a block", *changed)
        apply_recipe(recipe_of(tmp_path, "# None.\nmodel: {diffusion: {block_size: }}\n"), params)
        assert params.read_text() == before


def test_figures_are_short() -> None:
    counts = {None: "?", 226_000: "0.226 M", 999_950_000: "1 B", 124_337_664: "124 M", 2.95e11: "295 B", 3e12: "3 T"}
    assert {number: show_count(number) for number in counts} == counts
    sizes = {3e6: "3 MB", 81_234_567: "81 MB", 999e6: "1 GB", 3.44e9: "3.4 GB", 128e9: "128 GB"}
    assert {number: show_bytes(number) for number in sizes} == sizes
    durations = {
        None: "?",
        5.64: "5.6 s",
        41: "41 s",
        600: "10 min",
        12_600: "3.5 h",
        86_400 * 20: "20 days",
        3e10: "950 years",
    }
    assert {seconds: show_duration(seconds) for seconds in durations} == durations


def test_sections_are_those_of_params() -> None:
    assert set(SECTIONS) == set(COMMITTED) - {"profiles", "tracking"}
