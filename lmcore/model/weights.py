"""Weights in safetensors files, read and written one at a time: a model is never twice in memory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lmcore.errors import ArtifactError
from lmcore.files import fingerprint, read_json, sha256_file, write_file

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")  # the types of weights that are read
# The names of the types in a safetensors header.
TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class StoredWeights:
    """The weights of a model folder by their names: in model.safetensors or, without it, in the pieces of the index.

    `shapes` are known at once, and `read` gets one weight from the disk. Raises ArtifactError, with `remedy`, for a
    missing or damaged file and for numbers that are no floating-point ones.
    """

    def __init__(self, folder: Path, remedy: str) -> None:
        self.folder, self._remedy = folder, remedy
        self._places: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in self._list_files():
            with self._open(path) as file:
                for name in file.keys():  # noqa: SIM118
                    stored = file.get_slice(name)
                    if name in self._places:
                        raise ArtifactError(f"{path}: {name} is in {self._places[name].name} too: {remedy}")
                    self._places[name], self.shapes[name] = path, tuple(stored.get_shape())

    def read(self, name: str) -> Tensor:
        """One weight, of the type and shape that it has on the disk; it may lie in the file's own pages."""
        with self._open(self._places[name]) as file:  # anew for each: a closed file's pages are no memory of ours
            weight: Tensor = file.get_tensor(name)
            kind = file.get_slice(name).get_dtype()
        if kind not in FLOATS:
            raise ArtifactError(f"{self._places[name]}: {name} is of type {kind}: only {', '.join(FLOATS)} are read")
        if not torch.isfinite(weight.sum(dtype=torch.float32)):
            raise ArtifactError(f"{self._places[name]}: {name} holds numbers that are not finite")
        return weight

    def require_layers(self, count: int) -> None:
        """Raise ArtifactError for fewer weights than the layers of a model that would have to be built first."""
        if len(self.shapes) < count:
            raise ArtifactError(
                f"{self.folder}: config.json asks for {count} layers, and there are {len(self.shapes)} weights: "
                f"{self._remedy}"
            )

    def _list_files(self) -> list[Path]:
        whole, index = self.folder / WHOLE, self.folder / INDEX
        if whole.exists() or not index.exists():
            return [whole]
        match read_json(index, self._remedy):
            case {"weight_map": dict(places)} if all(map(is_file_name, places.values())):
                return sorted({self.folder / name for name in places.values()})
        raise ArtifactError(f"{index} is damaged (no weight_map of names to files beside it): {self._remedy}")

    def _open(self, path: Path) -> Any:
        try:
            return safe_open(path, "pt")
        except FileNotFoundError:
            raise ArtifactError(f"{path} does not exist: {self._remedy}") from None
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path} is damaged ({error}): {self._remedy}") from None


def is_file_name(name: object) -> bool:
    """Whether it is the bare name of a safetensors file, which leads nowhere else."""
    return isinstance(name, str) and name == Path(name).name and name.endswith(".safetensors")


def fingerprint_weights(folder: Path) -> str:
    """SHA-256 of model.safetensors or, where Hugging Face's library cut it in pieces, of the list of theirs."""
    whole = folder / WHOLE
    if whole.exists():
        return sha256_file(whole)
    pieces = sorted(folder.glob("*.safetensors"))
    return fingerprint({path.name: sha256_file(path) for path in pieces})


def lay_out_tensors(
    tensors: Mapping[str, tuple[torch.dtype, torch.Size]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, slice]]:
    """Return the header of a safetensors file, and the place of each tensor's bytes after it, in the file's order.

    The format: eight bytes with the length of the JSON, the JSON, the tensors (https://huggingface.co/docs/safetensors).
    The widest types come first, so that each tensor begins at a multiple of its elements' width.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    places: dict[str, slice] = {}
    end = 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
        start, end = end, end + shape.numel() * dtype.itemsize
        entries[name] = {"dtype": TYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        places[name] = slice(start, end)
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def write_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `weights` as `dtype` to a safetensors file: the bytes of `safetensors.torch.save_file`, one at a time."""
    header, places = lay_out_tensors({name: (dtype, weight.shape) for name, weight in weights.items()}, metadata)
    with write_file(path) as file:
        file.write(header)
        for name in places:
            numbers = weights[name].detach().to("cpu", dtype).contiguous()
            file.write(numbers.flatten().view(torch.uint8).numpy().data)


def copy_parts(shape: torch.Size, parts: list[Tensor]) -> Tensor:
    """A new weight of `shape` in fp32, its rows those of `parts` one after the other."""
    whole = torch.empty(shape)
    for room, part in zip(whole.split([len(part) for part in parts]), parts, strict=True):
        room.copy_(part)
    return whole
