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
from lmcore.errors import ArtifactError, LmcoreError
from lmcore.experiments.store import describe_params
from lmcore.files import derive_seed, fingerprint, named_path, read_json, sha256_file
from lmcore.lineage.lock import Pipeline
from lmcore.lineage.remedy import Mismatch, make_again
from lmcore.params import flatten
from lmcore.train.run_state import run_key

RAW, TOKENS, TOKENIZER, MODEL, EXPORT = "data/raw", "data/tokens", "models/tokenizer", "models/gpt", "models/export"
MANIFEST, LINEAGE, TOKENIZER_FILE, WEIGHTS, CARD = (
    *("manifest.json", "lineage.json", "tokenizer.json", "model.safetensors", "README.md"),
)
NOT_IDENTITY = {"run_key", "params", "metrics"}  # of lineage.json's entries, those that are no fingerprint

Find = Callable[[str, str], Path | None]  # an artefact's file, by the artefact's path and the file's place in it


@dataclass(frozen=True)
class Records:
    """The records of one state of the project; None for what cannot be found, or cannot be read."""

    find: Find

    @cached_property
    def corpus(self) -> dict[str, Any] | None:
        """data/raw's manifest: `sources` with url and licence, `files` with sha256 and bytes."""
        values = self._read(RAW, MANIFEST)
        listed = values is not None and all(isinstance(values.get(name), list) for name in ("sources", "files"))
        return values if listed else None

    @cached_property
    def tokens(self) -> dict[str, Any] | None:
        """data/tokens' manifest."""
        values = self._read(TOKENS, MANIFEST)
        return values if values is not None and isinstance(values.get("splits"), dict) else None

    @cached_property
    def model(self) -> dict[str, Any] | None:
        """The model's lineage.json."""
        values = self._read(MODEL, LINEAGE)
        return values if is_lineage(values) else None

    @cached_property
    def tokenizer(self) -> str | None:
        """The tokenizer's fingerprint: SHA-256 of its file."""
        return self._hash(TOKENIZER, TOKENIZER_FILE)

    @cached_property
    def token_fingerprints(self) -> dict[str, str] | None:
        """Of each split's entry in the manifest, as training notes them."""
        splits = (self.tokens or {}).get("splits")
        return None if splits is None else {split: fingerprint(entry) for split, entry in splits.items()}

    @cached_property
    def card(self) -> dict[str, str]:
        """The table `Lineage` of the exported model's card."""
        path = self.find(EXPORT, CARD)
        return {} if path is None else read_card(path)

    def find_contradictions(self, pipeline: Pipeline) -> Iterator[Mismatch]:
        """What one artefact says of another that the other is not."""
        yield from self._compare_tokens()
        if self.model is not None:
            yield from self._compare_model(self.model)
            yield from self._compare_params(self.model, pipeline)
            yield from self._compare_card(self.model)

    def _compare_tokens(self) -> Iterator[Mismatch]:
        made_by = (self.tokens or {}).get("tokenizer")
        if made_by and self.tokenizer and made_by != self.tokenizer:
            text = f"{TOKENS} were made by tokenizer {made_by[:12]}, {TOKENIZER} is {self.tokenizer[:12]}"
            yield Mismatch("tokenizer", text, make_again("encode"), "encode", TOKENS)

    def _compare_model(self, lineage: Mapping[str, Any]) -> Iterator[Mismatch]:
        again = make_again("train")
        for split, noted in lineage["tokens"].items():
            found = (self.token_fingerprints or {}).get(split)
            if found is not None and found != noted:
                text = f"{MODEL} was trained with {split} tokens {noted[:12]}, {TOKENS} has {found[:12]}"
                yield Mismatch("tokens", text, again, "train", MODEL)
        noted = lineage["tokenizer"]
        for path in (TOKENIZER, MODEL):
            found = self._hash(path, TOKENIZER_FILE)
            if found is not None and found != noted:
                text = f"{MODEL} was trained with tokenizer {noted[:12]}, {path}/{TOKENIZER_FILE} is {found[:12]}"
                yield Mismatch("tokenizer", text, again, "train", MODEL)
        key = compute_key(lineage)
        if key != lineage.get("run_key"):
            text = f"{MODEL}/{LINEAGE} names run {lineage.get('run_key')}, and its own parameters and text make {key}"
            yield Mismatch("lineage", text, again, "train", MODEL)

    def _compare_params(self, lineage: Mapping[str, Any], pipeline: Pipeline) -> Iterator[Mismatch]:
        if "train" not in pipeline.stages:
            return
        noted, recorded = (
            describe_params(values) for values in (flatten(lineage["params"]), pipeline.stages["train"].params)
        )
        different = [name for name in noted if name in recorded and noted[name] != recorded[name]]
        if different:
            told = ", ".join(f"{name} {noted[name]} not {recorded[name]}" for name in different[:3])
            text = f"{MODEL}/{LINEAGE} has other parameters than dvc.lock ({told})"
            yield Mismatch("lineage", text, make_again("train"), "train", MODEL)

    def _compare_card(self, lineage: Mapping[str, Any]) -> Iterator[Mismatch]:
        wanted = {"run": lineage.get("run_key"), "trained weights": self._hash(MODEL, WEIGHTS)}
        for name, value in wanted.items():
            noted = self.card.get(name)
            if value is not None and noted is not None and noted != value:
                text = f"{EXPORT} is of {name} {noted[:12]}, {MODEL} of {value[:12]}"
                yield Mismatch("export", text, make_again("export"), "export", EXPORT)

    def _read(self, path: str, name: str) -> dict[str, Any] | None:
        found = self.find(path, name)
        try:
            values = None if found is None else read_json(found, "")
        except ArtifactError:  # a damaged file is not what was recorded, and that is said of it already
            return None
        return values if isinstance(values, dict) else None

    def _hash(self, path: str, name: str) -> str | None:
        found = self.find(path, name)
        return None if found is None else sha256_file(found)


def is_lineage(values: object) -> bool:
    """Whether it is what training writes, in its outline."""
    return (
        isinstance(values, dict)
        and all(isinstance(values.get(name), dict) for name in ("params", "tokens"))
        and all(isinstance(values.get(name), str) for name in ("run_key", "tokenizer"))
    )


def compute_key(lineage: Mapping[str, Any]) -> str:
    """The key of the run that a lineage.json describes."""
    fingerprints = {name: value for name, value in lineage.items() if name not in NOT_IDENTITY}
    return run_key({**lineage["params"], **fingerprints})


def list_origins(lineage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The models that this one was trained on from, the nearest first."""
    origins = []
    origin = lineage.get("init_from")
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
            names = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
            text = f"{len(changed):,} {kind} changed since {stage}: {names}"
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
    return {name: value for name, value in rows if name not in ("made from",)}


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
    settings = {name.removeprefix("sample."): value for name, value in params.items() if name.startswith("sample.")}
    settings = {name: value for name, value in settings.items() if name != "prompts" and value is not None}
    mismatches = []
    if seed != noted:
        text = f"line {line} of {path.name} was drawn with seed {noted}; dvc.lock's sample.seed gives it {seed}"
        mismatches.append(Mismatch("sample", text, make_again("sample"), "sample", str(path)))
    return {**sample, "line": line, "settings": settings}, mismatches
