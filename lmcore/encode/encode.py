"""Documents to token shards: parts of the text side by side, their tokens in order, resumed after a kill."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lmcore.encode.params import EncodeParams
from lmcore.encode.shard_writer import SplitWriter, choose_dtype, write_manifest
from lmcore.errors import ArtifactError, DataError
from lmcore.files import read_json, save_array, write_folder, write_json
from lmcore.runtime.process_pool import HERE, Executor
from lmcore.runtime.progress import BytesProgress
from lmcore.runtime.scratch import reserve
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokens.checksums import VerifiedFiles


class TextPart(Protocol):
    """Some of a split's documents, which one process encodes at a time; it can be pickled."""

    @property
    def size(self) -> int:
        """Bytes, for the progress bar."""

    @property
    def source(self) -> str:
        """Where the text comes from; the parts of one source follow one another."""

    def fingerprint(self) -> str:
        """The same for the same documents."""

    def read(self) -> Iterator[list[str]]:
        """The texts, a batch at a time."""


def encode_splits(
    params: EncodeParams,
    splits: Mapping[str, Sequence[TextPart]],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    scratch: Path,
    executor: Executor = HERE,
    verified: VerifiedFiles | None = None,
) -> dict[str, int | float | str]:
    """Write the shards of every split and the manifest; the folder appears whole or not at all.

    Encoded parts wait in `scratch` until all are there: a killed stage goes on from them. The result depends on the
    documents and the tokenizer alone, not on the `executor` or on what was killed. What is written is entered in
    `verified`. Returns the metrics of `write_manifest`. Raises DataError for a split without text.
    """
    dtype = choose_dtype(tokenizer.vocab_size)
    names = {split: [part.fingerprint() for part in parts] for split, parts in splits.items()}
    with reserve(scratch, [tokenizer.fingerprint, names]) as place, write_folder(folder) as new:
        sizes = {
            split: [0 if (place / name).exists() else part.size for name, part in zip(names[split], parts, strict=True)]
            for split, parts in splits.items()
        }
        work = partial(encode_part, kind=type(tokenizer), artefact=tokenizer.artefact, dtype=dtype, place=place)
        entries = {}
        with BytesProgress("encode", sum(map(sum, sizes.values()))) as progress:
            for split, parts in splits.items():
                threads = 1 if min(executor.workers, len(parts)) > 1 else executor.workers
                encoded = executor.map(partial(work, threads=threads), parts)
                counted = progress.follow(encoded, sizes[split])
                with SplitWriter(new, split, params.shard_tokens, dtype, tokenizer.end_of_text) as writer:
                    for source, part_folder in zip([part.source for part in parts], counted, strict=True):
                        documents, ids, size = load_part(part_folder)
                        if documents:
                            writer.open_document(source)
                            writer.append(ids, size)
                if not writer.text_tokens:
                    raise DataError(
                        f"the {split} split holds no text: change prepare.validation_fraction, or give download more "
                        f"documents"
                    )
                entries[split] = writer.describe(verified or VerifiedFiles())
        return write_manifest(new, tokenizer, entries)


def encode_part(
    part: TextPart, *, kind: type[Tokenizer], artefact: bytes, dtype: str, place: Path, threads: int | None
) -> Path:
    """The folder below `place` with the part's tokens, made unless it is there already: see `load_part`."""
    folder = place / part.fingerprint()
    if folder.exists():
        return folder
    tokenizer = _restore(kind, artefact)
    separator = np.array([tokenizer.end_of_text], dtype=dtype)
    pieces: list[NDArray[Any]] = []
    documents = size = 0
    for batch in part.read():
        for ids in tokenizer.encode_batch(batch, threads):
            pieces += [separator] if documents else []
            pieces.append(ids.astype(dtype))
            documents += 1
            size += int(tokenizer.byte_lengths[ids].sum())
    with write_folder(folder) as new:
        save_array(new / "tokens.npy", np.concatenate([np.empty(0, dtype), *pieces]))
        write_json(new / "counts.json", {"documents": documents, "bytes": size})
    return folder


@lru_cache(maxsize=1)
def _restore(kind: type[Tokenizer], artefact: bytes) -> Tokenizer:
    return kind(artefact)


def load_part(folder: Path) -> tuple[int, NDArray[Any], int]:
    """What `encode_part` wrote: the number of documents, all tokens, bytes of text. A damaged part is removed."""
    try:
        counts = read_json(folder / "counts.json", "")
        return counts["documents"], np.load(folder / "tokens.npy", mmap_mode="r"), counts["bytes"]
    except (ValueError, EOFError, OSError, ArtifactError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ArtifactError(
            f"{folder} is damaged ({' '.join(str(error).split())}) and removed: run the same command again"
        ) from None
