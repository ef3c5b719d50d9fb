"""What artefacts say of themselves, in manifests, lineage.json, samples and model cards, and where they contradict."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lmcore.download.download import find_changes
from lmcore.encode.pretokenized import find_changed_tokens
from lmcore.errors import ArtifactError, LmcoreError, list_some
from lmcore.experiments.experiments import describe_params
from lmcore.files import derive_seed, fingerprint, named_path, read_json
from lmcore.lineage.dvc_files import Project
from lmcore.lineage.lock import Pipeline
from lmcore.lineage.remedy import Mismatch, make_again
from lmcore.params import flatten
from lmcore.train.run_state import run_key

RAW, TOKENS, TOKENIZER, MODEL, EXPORT = "data/raw", "data/tokens", "models/tokenizer", "models/gpt", "models/export"
MANIFEST, LINEAGE, CARD = "manifest.json", "lineage.json", "README.md"
TOKENIZER_FILE, WEIGHTS = "tokenizer.json", "model.safetensors"
KEY_CHARACTERS = 16
LINEAGE_TYPES: dict[str, type] = {"params": dict, "tokens": dict, "run_key": str, "tokenizer": str}
NOT_IDENTITY = {"run_key", "params", "metrics"}  # of lineage.json's entries, those that are no fingerprint

Find = Callable[[str, str], Path | None]  # an artefact's file, by the artefact's path and the file's place in it


@dataclass(frozen=True)
class Records:
    """The records of one state of the project; None for what cannot be found, or cannot be read."""

    project: Project  # which knows the checksums of what it has read
    find: Find

    @cached_property
    def corpus(self) -> dict[str, Any] | None:
        """data/raw's manifest: `sources` with url and licence, `files` with sha256 and bytes."""
        return read_record(self.find(RAW, MANIFEST), {"sources": list, "files": list})

    @cached_property
    def tokens(self) -> dict[str, Any] | None:
        """data/tokens' manifest."""
        return read_record(self.find(TOKENS, MANIFEST), {"splits": dict})

    @cached_property
    def model(self) -> dict[str, Any] | None:
        """The model's lineage.json."""
        return read_record(self.find(MODEL, LINEAGE), LINEAGE_TYPES)

    @cached_property
    def tokenizer(self) -> str | None:
        """The tokenizer's fingerprint: SHA-256 of its file."""
        return self._hash(TOKENIZER, TOKENIZER_FILE)

    @cached_property
    def token_fingerprints(self) -> dict[str, str] | None:
        """Of each split's entry in the manifest, as training notes them."""
        splits = self.tokens and self.tokens["splits"]
        return splits and {split: fingerprint(entry) for split, entry in splits.items()}

    @cached_property
    def card(self) -> dict[str, str]:
        """The table `Lineage` of the exported model's card."""
        path = self.find(EXPORT, CARD)
        return {} if path is None else read_card(path)

    def find_contradictions(self, pipeline: Pipeline) -> Iterator[Mismatch]:
        """What one artefact says of another that the other is not."""
        for kind, stage, path, told, noted, other, found in self._list_claims():
            if noted and found and noted != found:
                text = f"{path} {told} {shorten(noted)}, {other} is {shorten(found)}"
                yield Mismatch(kind, text, make_again(stage), stage, path)
        if self.model is not None and "train" in pipeline.stages:
            noted_params = describe_params(flatten(self.model["params"]))
            if words := tell_differing(noted_params, describe_params(pipeline.stages["train"].params)):
                text = f"{MODEL}/{LINEAGE} has other parameters than dvc.lock ({words})"
                yield Mismatch("lineage", text, make_again("train"), "train", MODEL)

    def _list_claims(self) -> Iterator[tuple[str, str, str, str, str | None, str, str | None]]:
        """Yield what artefacts note of others.

        In each: the kind of mismatch, the stage to run again, the artefact, its claim in words, the fingerprint noted,
        and the other artefact with its fingerprint; None for a fingerprint that is not known.
        """
        tokens, lineage = self.tokens or {}, self.model
        yield "tokenizer", "encode", TOKENS, "was made by tokenizer", tokens.get("tokenizer"), TOKENIZER, self.tokenizer
        if lineage is None:
            return
        key, fingerprints = lineage["run_key"], self.token_fingerprints or {}
        for split, noted in lineage["tokens"].items():
            yield "tokens", "train", MODEL, f"was trained with {split} tokens", noted, TOKENS, fingerprints.get(split)
        for place in (TOKENIZER, MODEL):
            found = self._hash(place, TOKENIZER_FILE)
            told = "was trained with tokenizer"
            yield "tokenizer", "train", MODEL, told, lineage["tokenizer"], f"{place}/{TOKENIZER_FILE}", found
        other = f"what its {LINEAGE} describes"
        yield "lineage", "train", MODEL, "names run", key, other, compute_key(lineage)
        yield "export", "export", EXPORT, "is of run", self.card.get("run"), MODEL, key
        if noted := self.card.get("trained weights"):
            yield "export", "export", EXPORT, "is of weights", noted, MODEL, self._hash(MODEL, WEIGHTS)

    def _hash(self, path: str, name: str) -> str | None:
        found = self.find(path, name)
        return None if found is None else self.project.read_all([found], "read")[found].sha256


def read_record(path: Path | None, types: Mapping[str, type]) -> dict[str, Any] | None:
    """Return the JSON object in a file if it has these types (see `has_types`); None otherwise, and without a file."""
    try:
        values = None if path is None else read_json(path, "")
    except ArtifactError:  # a damaged file is not what was recorded, and that is said of it already
        return None
    return values if has_types(values, types) else None


def has_types(values: object, types: Mapping[str, type]) -> bool:
    """Return True for a JSON object that has these keys with values of these types."""
    return isinstance(values, dict) and all(isinstance(values.get(name), kind) for name, kind in types.items())


def shorten(fingerprint: str) -> str:
    """Return the beginning of a SHA-256; the key of a run, which is short, as a whole."""
    return fingerprint if len(fingerprint) <= KEY_CHARACTERS else fingerprint[:12]


def tell_differing(found: Mapping[str, str], expected: Mapping[str, str]) -> str:
    """Return the parameters of `found` that are others in `expected`, as `train.seed 9 not 1`."""
    names = [name for name in found if name in expected and found[name] != expected[name]]
    return list_some([f"{name} {found[name]} not {expected[name]}" for name in names])


def compute_key(lineage: Mapping[str, Any]) -> str:
    """The key of the run that a lineage.json describes."""
    fingerprints = {name: value for name, value in lineage.items() if name not in NOT_IDENTITY}
    return run_key({**lineage["params"], **fingerprints})


def list_origins(lineage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The models that this one was trained on from, the nearest first."""
    origins, origin = [], lineage.get("init_from")
    while isinstance(origin, Mapping):  # in a damaged one it may be anything
        origins.append({name: value for name, value in origin.items() if name != "init_from"})
        origin = origin.get("init_from")
    return origins


def find_changed_sources(root: Path) -> Iterator[Mismatch]:
    """One's own text and others' tokens, which DVC does not watch, when they are not what the project was made of."""
    for kind, stage, find, place in (
        ("files of your text have", "download", find_changes, RAW),
        ("files of encode.tokenized have", "encode", find_changed_tokens, TOKENS),
    ):
        folder = root / place
        try:
            changed = find(folder) if (folder / MANIFEST).exists() else []
        except (LmcoreError, LookupError, TypeError, AttributeError):  # of a damaged manifest, which is said elsewhere
            continue
        if changed:
            text = f"{len(changed):,} {kind} changed since {stage}: {list_some(changed)}"
            yield Mismatch("source", text, f"dvc repro --force {stage}, then dvc repro", stage, place)


def find_changed_origin(pipeline: Pipeline, lineage: Mapping[str, Any]) -> Iterator[Mismatch]:
    """The folder that train.init_from names, which DVC does not watch, when it holds other weights by now."""
    name = pipeline.stages["train"].params.get("train.init_from") if "train" in pipeline.stages else None
    origins = list_origins(lineage)
    if not name or not origins or "repository" in origins[0]:
        return
    from lmcore.model.weights import fingerprint_weights

    folder, noted = named_path(name), origins[0]["weights"]
    found = fingerprint_weights(folder) if folder.is_dir() else None
    if found != noted:
        told = "is gone" if found is None else f"holds weights {found[:12]}"
        text = f"{MODEL} began as train.init_from={name} with weights {noted[:12]}, and that {told}"
        yield Mismatch("origin", text, f"bring that model back, or {make_again('train')}", "train", MODEL)


def read_card(path: Path) -> dict[str, str]:
    """What a model card of ours names under `Lineage`, without the marks of code."""
    text = path.read_text(encoding="utf-8", errors="replace").partition("\n## Lineage\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| `?(.+?)`? \|$", text, re.M)
    return {name: value for name, value in rows if name != "made from"}


def read_sample(path: Path, line: int, params: Mapping[str, Any]) -> tuple[dict[str, Any], list[Mismatch]]:
    """One sample of a samples.jsonl (`line` from 1) with the settings that made it, and whether they would again.

    Raises ArtifactError for a line that there is not, or that is damaged.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    if not 1 <= line <= len(lines):
        raise ArtifactError(f"{path} has {len(lines)} lines, not {line}: name one from 1 to {len(lines)}")
    try:
        sample: dict[str, Any] = json.loads(lines[line - 1])
        seed = derive_seed(params["sample.seed"], sample["prompt"], sample["sample"])
        noted = sample["seed"]
    except (ValueError, LookupError, TypeError):
        raise ArtifactError(f"{path}: line {line} is damaged: {make_again('sample')}") from None
    settings = {
        name.removeprefix("sample."): value
        for name, value in params.items()
        if name.startswith("sample.") and name != "sample.prompts" and value is not None
    }
    text = f"line {line} of {path.name} was drawn with seed {noted}; dvc.lock's sample.seed gives it {seed}"
    mismatch = Mismatch("sample", text, make_again("sample"), "sample", str(path))
    return {**sample, "line": line, "settings": settings}, [mismatch] if seed != noted else []
