"""Documents to token shards, as a stream."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from lmcore.errors import DataError
from lmcore.files import write_folder, write_json
from lmcore.params import Int, Section
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokens.shards import MANIFEST, ShardWriter


class EncodeParams(Section):
    """How tokens are cut into files."""

    shard_tokens: Int = Field(ge=1)


def encode_splits(
    params: EncodeParams, splits: Mapping[str, Iterable[list[str]]], tokenizer: Tokenizer, folder: Path
) -> dict[str, int | float | str]:
    """Write the shards of every split and the manifest; the folder appears whole or not at all.

    Returns the metrics: SPLIT_tokens of each, bytes_per_token over all of them, dtype. Raises DataError for a split
    without text.
    """
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    with write_folder(folder) as partial:
        entries = {
            split: _encode_split(ShardWriter(partial, split, params.shard_tokens, dtype), split, texts, tokenizer)
            for split, texts in splits.items()
        }
        manifest = {
            "dtype": dtype,
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
            "tokenizer": tokenizer.fingerprint,
            "splits": entries,
        }
        write_json(partial / MANIFEST, manifest)
    total_bytes, total_tokens = (sum(entry[unit] for entry in entries.values()) for unit in ("bytes", "tokens"))
    return {
        **{f"{split}_tokens": entry["tokens"] for split, entry in entries.items()},
        "bytes_per_token": round(total_bytes / total_tokens, 4),
        "dtype": dtype,
    }


def _encode_split(writer: ShardWriter, split: str, texts: Iterable[list[str]], tokenizer: Tokenizer) -> dict[str, Any]:
    """Write one split's shards, an end-of-text between documents only, and return its entry in the manifest."""
    separator = np.array([tokenizer.end_of_text])
    tokens = documents = size = 0
    with writer:
        for batch in texts:
            for ids in tokenizer.encode_batch(batch):
                if documents:
                    writer.append(separator)
                writer.append(ids)
                documents += 1
                tokens += len(ids)
                size += int(tokenizer.byte_lengths[ids].sum())
    if not tokens:
        raise DataError(
            f"the {split} split holds no text: change prepare.validation_fraction, or give download more documents"
        )
    shards = writer.describe()
    return {"tokens": tokens + documents - 1, "documents": documents, "bytes": size, "shards": shards}
