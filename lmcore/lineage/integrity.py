"""What artefacts promise of their own files: manifests' checksums, weights' headers, checkpoints' seals."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmcore.errors import ArtifactError
from lmcore.files import read_json
from lmcore.lineage.dvc_files import Content
from lmcore.lineage.provenance import MANIFEST, RAW, TOKENS

FILES = "files/"  # where data/raw has what its manifest lists
LONGEST_HEADER = 100_000_000  # bytes, as safetensors' own library reads at most


def check_manifest(path: str, place: Path, contents: Mapping[str, Content]) -> Iterator[tuple[str, str]]:
    """The files of data/raw or data/tokens that are not what the manifest in `place` promises, and in what way."""
    if path not in (RAW, TOKENS):
        return
    try:
        manifest = read_json(place / MANIFEST, "")
        promised = dict(_list_raw(manifest) if path == RAW else _list_tokens(manifest))
    except (ArtifactError, LookupError, TypeError, AttributeError):
        yield MANIFEST, "is missing or damaged"
        return
    for name in sorted(promised.keys() | contents.keys() - {MANIFEST}):
        found = contents.get(name)
        if found is None:
            yield name, f"is gone, {MANIFEST} lists it"
        elif name not in promised:
            yield name, f"is not in {MANIFEST}"
        elif found.sha256 != promised[name]:
            yield name, f"differs: SHA-256 {found.sha256[:12]}, {MANIFEST} has {promised[name][:12]}"


def _list_raw(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for entry in manifest["files"]:
        yield FILES + entry["path"], entry["sha256"]


def _list_tokens(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for split in manifest["splits"].values():
        for entry in (*split["shards"], split["document_offsets"]):
            yield entry["file"], entry["sha256"]


def check_weights(place: Path, contents: Mapping[str, Content]) -> Iterator[tuple[str, str]]:
    """The safetensors files among `contents` whose header and length do not fit."""
    for name in contents:
        if name.endswith(".safetensors") and (complaint := explain_weights(place / name)):
            yield name, complaint


def explain_weights(path: Path) -> str | None:
    """What is wrong with a safetensors file's shape: a header as long as it says, tensors side by side, to the end.

    https://huggingface.co/docs/safetensors says so.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, LONGEST_HEADER):
            return "its header is cut off"
        try:
            header = json.loads(file.read(length))
            tensors = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
            end = 0
            for begin, after in sorted(tensors):
                if begin != end or after < begin:
                    return "its tensors do not lie side by side"
                end = after
        except (ValueError, LookupError, TypeError, AttributeError):
            return "its header is damaged"
    if 8 + length + end != size:
        return f"it has {size:,} bytes, its header promises {8 + length + end:,}"
    return None


def check_checkpoint(seal: Path, found: Content | None) -> str | None:
    """What is wrong with a checkpoint beside its seal; None for a sound one. `found` is None where it is gone."""
    try:
        record = read_json(seal, "")
        sha256, size = record["sha256"], record["bytes"]
    except (ArtifactError, LookupError, TypeError):
        return "its seal is damaged"
    if found is None:
        return "is gone, its seal is there"
    if found.bytes != size:
        return f"is torn: {found.bytes:,} bytes, its seal has {size:,}"
    if found.sha256 != sha256:
        return f"differs: SHA-256 {found.sha256[:12]}, its seal has {sha256[:12]}"
    return None
