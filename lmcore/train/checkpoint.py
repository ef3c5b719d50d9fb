"""Checkpoints: everything that the next step depends on, written whole or not at all.

The batch, the learning rate and the dropout masks of a step are pure functions of the seed and the step, so weights,
optimizer state and the step itself are the whole state: there is no loader or generator to lose.

Training waits for a copy within memory and no longer; one thread beside it brings the copy to the disk. Where training
uses every core, that thread's time on one of them is paid as well.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ValidationError
from safetensors.torch import load_file
from torch import Tensor

from lmcore.errors import FULL_DISK, ArtifactError
from lmcore.files import read_json, sha256_file, write_file, write_json
from lmcore.model.weights import lay_out_tensors
from lmcore.runtime.progress import warn

FORMAT = 1


class CheckpointMetadata(BaseModel, frozen=True, extra="forbid"):
    """Content of step-N.json, which is written once the tensors are on disk, and makes them a checkpoint."""

    format: int
    step: int
    sha256: str
    bytes: int
    val_loss: float | None = None
    trunk: bool = False  # at the end of a stable phase: kept for a longer run to branch off


class Image:
    """The bytes of a safetensors file, kept in memory, and in them the places where the tensors belong.

    With the file laid out by hand there is nothing to serialise. A state of 127 MB on one core:

    | way to the disk                  | hash and write | memory beside the copy | longest GIL hold | full disk   |
    |----------------------------------|----------------|------------------------|------------------|-------------|
    | hash the image, write it (this)  | 0.12 s         | none                   | 1 ms             | OSError     |
    | `save_file`, hash what it wrote  | 0.13 s         | none                   | 1 ms             | only a text |
    | `save`, hash its bytes, write    | 0.24 s         | the state again        | 54 ms            | OSError     |
    """

    def __init__(self, shapes: Mapping[str, tuple[torch.dtype, torch.Size]]) -> None:
        header, places = lay_out_tensors(shapes)
        end = max((place.stop for place in places.values()), default=0)
        whole = torch.empty(len(header) + end, dtype=torch.uint8)
        whole[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        body = whole[len(header) :]
        self.shapes, self.content = shapes, whole.numpy().data
        self.views = {name: body[places[name]].view(dtype).view(shape) for name, (dtype, shape) in shapes.items()}

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors, from whatever device and in whatever strides, to their places."""
        for name, view in self.views.items():
            view.copy_(tensors[name].detach())


class Checkpoints:
    """The folder of one run's checkpoints: step-00000100.safetensors and, written after it, step-00000100.json.

    The second file, `CheckpointMetadata`, holds the first one's SHA-256; a checkpoint without it, or not matching it,
    does not count. Kept are the last `keep`, the one with the lowest validation loss, and every end of a stable phase.
    Whoever saves holds the run's lock. Leaving the context waits for the writer.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._image: Image | None = None
        # At the usual priority: at a lower one it was set aside while it held the GIL, and steps took up to 40 s.
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._writer:
            self.finish()

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        *,
        val_loss: float | None = None,
        ends_stable_phase: bool = False,
    ) -> None:
        """Copy the state after `step` updates, which may change once this returns, and have it written.

        The one with the lowest `val_loss` (nats per token) stays, and each that `ends_stable_phase`, for a longer
        run to branch off. Waits for the write before, and raises what stopped that one, unless it was a full disk.
        """
        self.finish()
        shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        if self._image is None or self._image.shapes != shapes:
            self._image = None  # its memory goes before the new one's comes
            self._image = Image(shapes)
        self._image.fill(tensors)
        self._writing = self._writer.submit(self._write, step, self._image, val_loss, ends_stable_phase)

    def finish(self) -> None:
        """Wait until the last save is on disk; raises what stopped it, unless it was a full disk."""
        if self._writing is not None:
            wait([self._writing])
            written, self._writing = self._writing, None
            written.result()

    def restore(self) -> tuple[int, dict[str, Tensor]] | None:
        """The newest sound checkpoint's step and tensors, on the CPU; None when there is none."""
        self.finish()
        found = self._list()
        for path in sorted(set(self.folder.glob("step-*.json")) - found.keys()):
            warn(f"{path} belongs to another version of lmcore (this one reads format {FORMAT}): passed over")
        for path, metadata in reversed(found.items()):
            try:
                return metadata.step, _read_tensors(path.with_suffix(".safetensors"), metadata)
            except ArtifactError as error:
                _discard(path, error)
        return None

    def _write(self, step: int, image: Image, val_loss: float | None, ends_stable_phase: bool) -> None:
        """The writer's work. Hashing and writing let go of the GIL, so that training goes on beside them."""
        self._remove_leftovers()
        path = self.folder / f"step-{step:08d}.safetensors"
        metadata = CheckpointMetadata(
            format=FORMAT,
            step=step,
            # Hashing what was read back would only show that the page cache has it; `restore` reads it in earnest.
            sha256=hashlib.sha256(image.content).hexdigest(),
            bytes=image.content.nbytes,
            val_loss=val_loss,
            trunk=ends_stable_phase,
        )
        try:
            with write_file(path) as file:
                file.write(image.content)
            write_json(path.with_suffix(".json"), metadata.model_dump(exclude_defaults=True))
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            self._remove_leftovers()
            warn(
                f"{path} was not written ({os.strerror(error.errno)}): training goes on, the last good checkpoint is "
                f"kept and the next one will be tried; free some space"
            )
        else:
            self._prune()

    def _prune(self) -> None:
        found = self._list()
        losses = {path: metadata.val_loss for path, metadata in found.items() if metadata.val_loss is not None}
        best = min(losses, key=losses.__getitem__, default=None)  # the first of equals
        for path in found.keys() - {*list(found)[-self.keep :], best, *(path for path in found if found[path].trunk)}:
            path.unlink()
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Remove tensors without metadata, and what a killed writer had begun."""
        for path in self.folder.glob("step-*.safetensors"):
            if not path.with_suffix(".json").exists():
                path.unlink()
        for place in self.folder.glob(".step-*.partial-*"):
            shutil.rmtree(place)

    def _list(self) -> dict[Path, CheckpointMetadata]:
        """Metadata by path, from the first step to the last. Damaged files are removed, other versions' left alone."""
        found = {}
        for path in self.folder.glob("step-*.json"):
            try:
                metadata = _read_metadata(path)
            except ArtifactError as error:
                _discard(path, error)
            else:
                if metadata is not None:
                    found[path] = metadata
        return dict(sorted(found.items(), key=lambda item: item[1].step))


def _discard(path: Path, error: ArtifactError) -> None:
    """Remove the metadata of a damaged checkpoint, so that it does not count among the last ones that are kept."""
    warn(f"{error}: passed over")
    path.unlink()


def _read_metadata(path: Path) -> CheckpointMetadata | None:
    """None when it is another version's. Raises ArtifactError when it is damaged."""
    record = read_json(path, "it was removed, or its disk is failing")
    if isinstance(record, dict) and record.get("format") != FORMAT:
        return None
    try:
        metadata = CheckpointMetadata.model_validate(record)
    except ValidationError:
        raise ArtifactError(f"{path} is damaged") from None
    if path.stem != f"step-{metadata.step:08d}":
        raise ArtifactError(f"{path} is damaged (it says step {metadata.step})")
    return metadata


def _read_tensors(path: Path, metadata: CheckpointMetadata) -> dict[str, Tensor]:
    """Raises ArtifactError when the file is missing or does not match its checksum."""
    if not path.exists():
        raise ArtifactError(f"{path} does not exist")
    if sha256_file(path) != metadata.sha256:
        raise ArtifactError(f"{path} is torn or changed (its SHA-256 differs)")
    # Memory of their own: load_file maps the file, and a mapped file that is cut kills the process that reads it.
    return {name: tensor.clone() for name, tensor in load_file(path).items()}
