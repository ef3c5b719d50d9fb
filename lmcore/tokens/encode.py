"""Documents to token shards: parts of the text side by side, their tokens in order, resumed after a kill."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmcore.errors import ArtifactError, DataError
from lmcore.files import read_json, save_array, write_folder, write_json
from lmcore.params import Int, Section
from lmcore.progress import BytesProgress
from lmcore.scratch import reserve
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokens.shards import MANIFEST, ShardWriter
from lmcore.workers import HERE, Engine


class EncodeParams(Section):
    """How tokens are cut into files."""

    shard_tokens: Int = Field(ge=1)


class TextPart(Protocol):
    """Some of a split's documents, which one process encodes at a time; it can be pickled."""

    @property
    def size(self) -> int:
        """Bytes, for the progress bar."""

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
    engine: Engine = HERE,
) -> dict[str, int | float | str]:
    """Write the shards of every split and the manifest; the folder appears whole or not at all.

    Encoded parts wait in `scratch` until all are there: a killed stage goes on from them. The result depends on the
    documents and the tokenizer alone, not on the `engine` or on what was killed. Returns the metrics: SPLIT_tokens of
    each, bytes_per_token over all of them, dtype. Raises DataError for a split without text.
    """
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
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
                threads = 1 if min(engine.workers, len(parts)) > 1 else engine.workers
                encoded = engine.map(partial(work, threads=threads), parts)
                writer = ShardWriter(new, split, params.shard_tokens, dtype)
                counted = progress.follow(encoded, sizes[split])
                entries[split] = join_parts(writer, split, counted, tokenizer.end_of_text)
        manifest = {
            "dtype": dtype,
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
            "tokenizer": tokenizer.fingerprint,
            "splits": entries,
        }
        write_json(new / MANIFEST, manifest)
    total_bytes, total_tokens = (sum(entry[unit] for entry in entries.values()) for unit in ("bytes", "tokens"))
    return {
        **{f"{split}_tokens": entry["tokens"] for split, entry in entries.items()},
        "bytes_per_token": round(total_bytes / total_tokens, 4),
        "dtype": dtype,
    }


@dataclass(frozen=True)
class Texts:
    """A part that is in memory."""

    batches: Sequence[list[str]]

    @property
    def size(self) -> int:
        """Characters, which will do."""
        return sum(len(text) for batch in self.batches for text in batch)

    def fingerprint(self) -> str:
        """SHA-256 of all texts, each with its length."""
        digest = sha256()
        for text in (text.encode(errors="surrogatepass") for batch in self.batches for text in batch):
            digest.update(len(text).to_bytes(8, "big"))
            digest.update(text)
        return digest.hexdigest()

    def read(self) -> Iterator[list[str]]:
        """The batches."""
        return iter(self.batches)


def encode_part(
    part: TextPart, *, kind: type[Tokenizer], artefact: bytes, dtype: str, place: Path, threads: int | None
) -> Path:
    """The folder below `place` with the part's tokens, made unless it is there already: see `EncodedPart`."""
    folder = place / part.fingerprint()
    if folder.exists():
        return folder
    tokenizer = _restore(kind, artefact)
    separator = np.array([tokenizer.end_of_text], dtype=dtype)
    pieces: list[NDArray[Any]] = []
    lengths: list[int] = []
    size = 0
    for batch in part.read():
        for ids in tokenizer.encode_batch(batch, threads):
            pieces += [separator] if lengths else []
            pieces.append(ids.astype(dtype))
            lengths.append(len(ids))
            size += int(tokenizer.byte_lengths[ids].sum())
    with write_folder(folder) as new:
        save_array(new / "tokens.npy", np.concatenate([np.empty(0, dtype), *pieces]))
        save_array(new / "lengths.npy", np.array(lengths, dtype=np.uint64))
        write_json(new / "bytes.json", size)
    return folder


@lru_cache(maxsize=1)
def _restore(kind: type[Tokenizer], artefact: bytes) -> Tokenizer:
    return kind(artefact)


def join_parts(writer: ShardWriter, split: str, parts: Iterable[Path], end_of_text: int) -> dict[str, Any]:
    """Write one split's shards, an end-of-text between documents only, and return its entry in the manifest."""
    separator = np.array([end_of_text])
    tokens = documents = size = 0
    with writer:
        for folder in parts:
            lengths, ids, part_size = load_part(folder)
            if documents and len(lengths):
                writer.append(separator)
            writer.append(ids)
            documents += len(lengths)
            tokens += int(lengths.sum())
            size += part_size
    if not tokens:
        raise DataError(
            f"the {split} split holds no text: change prepare.validation_fraction, or give download more documents"
        )
    shards = writer.describe()
    return {"tokens": tokens + documents - 1, "documents": documents, "bytes": size, "shards": shards}


def load_part(folder: Path) -> tuple[NDArray[np.uint64], NDArray[Any], int]:
    """What `encode_part` wrote: tokens of each document, all tokens, bytes of text. A damaged part is removed."""
    try:
        ids = np.load(folder / "tokens.npy", mmap_mode="r")
        return np.load(folder / "lengths.npy"), ids, read_json(folder / "bytes.json", "")
    except (ValueError, EOFError, OSError, ArtifactError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ArtifactError(
            f"{folder} is damaged ({' '.join(str(error).split())}) and removed: run the same command again"
        ) from None
