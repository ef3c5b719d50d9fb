"""What artefacts promise of their own files: manifests' checksums, weights' headers, checkpoints' seals."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lmcore.errors import ArtifactError
from lmcore.files import read_json
from lmcore.lineage.dvc_files import Content
from lmcore.lineage.provenance import MANIFEST, RAW, TOKENS


@dataclass(frozen=True)
class Fault:
    """A file that is not as it should be, and in what way."""

    file: str
    text: str


def check_manifest(path: str, place: Path, contents: Mapping[str, Content]) -> Iterator[Fault]:
    """The files of data/raw or data/tokens that are not what the manifest in `place` promises, and in what way."""
    if path not in (RAW, TOKENS):
        return
    try:
        manifest = read_json(place / MANIFEST, "")
        if path == RAW:
            promised = {f"files/{entry['path']}": entry["sha256"] for entry in manifest["files"]}
        else:
            splits = manifest["splits"].values()
            entries = [entry for split in splits for entry in (*split["shards"], split["document_offsets"])]
            promised = {entry["file"]: entry["sha256"] for entry in entries}
    except (ArtifactError, LookupError, TypeError, AttributeError):
        yield Fault(MANIFEST, "is missing or damaged")
        return
    for name in sorted(promised.keys() | contents.keys() - {MANIFEST}):
        found = contents.get(name)
        if found is None:
            yield Fault(name, f"is gone, {MANIFEST} lists it")
        elif name not in promised:
            yield Fault(name, f"is not in {MANIFEST}")
        elif found.sha256 != promised[name]:
            yield Fault(name, f"differs: SHA-256 {found.sha256[:12]}, {MANIFEST} has {promised[name][:12]}")


def check_weights(place: Path, contents: Mapping[str, Content]) -> Iterator[Fault]:
    """The safetensors files among `contents` whose header and length do not fit, as safetensors' own library says."""
    for name in contents:
        if name.endswith(".safetensors") and not contents[name].error:
            try:
                with safe_open(place / name, framework="numpy"):
                    pass
            except SafetensorError as error:
                yield Fault(name, f"its header and its length do not fit: {str(error).partition('header: ')[2]}")


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
