"""Windows that begin at documents, and windows that do not move."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import encode_texts

from lmcore.errors import DataError
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokens import windows
from lmcore.tokens.batches import Batches
from lmcore.tokens.shards import TokenShards

TOKENIZER = ByteTokenizer.create()


def open_shards(folder: Path, lengths: list[int]) -> TokenShards:
    """Documents of so many tokens, no two of which are alike nearby."""
    letters = "".join(chr(97 + place % 25) for place in range(sum(lengths)))
    ends = np.cumsum(lengths).tolist()
    texts = [letters[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    encode_texts(50, {"train": [texts]}, TOKENIZER, folder / "tokens")
    return TokenShards.open(folder / "tokens", "train")


def chain(lengths: list[int], context: int) -> list[int]:
    """Where windows begin, as the definition says it, one document after the other."""
    starts, position, end = [], 0, 0
    for length in lengths:
        if position >= end and position + context <= sum(lengths) + len(lengths) - 1:
            starts.append(position)
            end = position + context
        position += length + 1
    return starts


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=40).filter(sum),
    context=st.integers(1, 25),
    chunk=st.sampled_from([1, 3, 1000]),
)
def test_each_window_begins_at_a_document(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], context: int, chunk: int
) -> None:
    shards = open_shards(tmp_path_factory.mktemp("windows"), lengths)
    expected = chain(lengths, context)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "CHUNK_DOCUMENTS", chunk)
        if not expected:
            with pytest.raises(DataError, match=r"from the beginning of a document on: use more text"):
                Batches(shards, 2, context, 1, packing="document")
            return
        batches = Batches(shards, 1, context, 1, packing="document")
    stream = shards.read(0, len(shards))
    for epoch in range(3):
        steps = range(epoch * len(expected), (epoch + 1) * len(expected))
        rows = sorted(tuple(batches.at(step)[0].tolist()) for step in steps)
        assert rows == sorted(tuple(stream[start : start + context + 1].tolist()) for start in expected)
        assert all(row[0] == shards.end_of_text for row in rows)
    assert batches.figures == {"lost_tokens": shards.tokens - context * len(expected)}
    assert batches.tokens == context * len(expected)


def test_what_is_lost_is_said(tmp_path: Path) -> None:
    batches = Batches(open_shards(tmp_path, [9, 25, 12]), 1, 10, 1, packing="document")
    assert list(batches.describe(1)) == ["windows begin at documents: 18 of 48 tokens (37.5%) are not trained on"]


def test_epochs_have_orders_of_their_own(tmp_path: Path) -> None:
    batches = Batches(open_shards(tmp_path, [9] * 50), 50, 10, 1, packing="document")
    assert len({batches.at(epoch)[:, 1:].tobytes() for epoch in range(4)}) == 4


def test_without_jitter_windows_stay_where_they_are(tmp_path: Path) -> None:
    shards = open_shards(tmp_path, [507])
    still, moving = (Batches(shards, 50, 10, 1, jitter=jitter) for jitter in (False, True))
    epochs = [sorted(still._starts_of(0)[epoch].tolist()) for epoch in range(4)]
    assert epochs == [list(range(0, 500, 10))] * 4
    assert [still.at(epoch).tolist() for epoch in range(2)] != [still.at(0).tolist()] * 2
    assert still.at(0).tolist() == moving.at(0).tolist()
    assert len({tuple(sorted(moving._starts_of(0)[epoch].tolist())) for epoch in range(8)}) > 4
