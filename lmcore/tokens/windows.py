"""Where training windows begin in a stretch of the stream: side by side, or each at a document."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmcore.errors import DataError
from lmcore.tokens.permutation import permute
from lmcore.tokens.shards import TokenShards, TokenSource

Packing = Literal["stream", "document"]
CHUNK_DOCUMENTS = 1 << 14


class StreamWindows:
    """Window w of a stretch holds its tokens [w C, w C + C], C + 1 of them, so that C are targets.

    Its last token is the next window's first input. With `jitter` every epoch after the first shifts all windows by an
    offset of its own below C, so that a repeated text is not cut at the same places; the last window stays within the
    text. Without it the tokens after the last whole window, fewer than C, are never trained on.
    """

    lost_tokens = 0  # between the windows, where no epoch trains on them

    def __init__(self, source: TokenSource, context_length: int, *, jitter: bool) -> None:
        self.begin, self.tokens = source.begin, source.tokens
        self.context_length, self.jitter = context_length, jitter
        self.count = self.tokens // context_length

    def find(self, places: NDArray[np.int64], epoch_key: bytes | None) -> NDArray[np.int64]:
        """Return where the windows at `places` begin; `epoch_key` is None in the first epoch."""
        offset = permute(np.zeros(1), self.context_length, epoch_key) if epoch_key and self.jitter else 0
        last = self.begin + self.tokens - self.context_length
        starts: NDArray[np.int64] = np.minimum(self.begin + places * self.context_length + offset, last)
        return starts


class DocumentWindows:
    """Each window begins with the end-of-text that opens a document; what lies between two windows is lost.

    The next one begins at the first document that opens at or after the last token of the one before.
    """

    def __init__(self, source: TokenSource, context_length: int, documents: NDArray[np.uint64]) -> None:
        first, end = np.searchsorted(documents, np.array([source.begin, source.end], np.uint64)).tolist()
        starts = choose_documents(documents[first:end], context_length)
        self._starts = starts[starts + context_length < source.end]  # the last ones may not have enough text
        self.count = len(self._starts)
        self.tokens = self.count * context_length
        self.lost_tokens = source.tokens - self.tokens

    def find(self, places: NDArray[np.int64], epoch_key: bytes | None) -> NDArray[np.int64]:  # noqa: ARG002
        """Return where the windows at `places` begin, in any epoch."""
        return self._starts[places]


def choose_documents(documents: NDArray[np.uint64], context_length: int) -> NDArray[np.int64]:
    """Of the increasing positions `documents` the first, then each time the first that is C or more after the last."""
    chosen = []
    place = 0
    for begin in range(0, len(documents), CHUNK_DOCUMENTS):
        size = min(CHUNK_DOCUMENTS, len(documents) - begin)
        some = documents[begin : begin + size + context_length]  # no two positions are equal
        after = np.searchsorted(some, some[:size] + np.uint64(context_length))
        chain = _follow(after, place - begin)
        if len(chain):
            chosen.append(some[chain].astype(np.int64))
            place = begin + int(after[chain[-1]])
    return np.concatenate(chosen)


def _follow(after: NDArray[np.int64], first: int) -> NDArray[np.int64]:
    """The chain first, after[first], after[after[first]] and so on, as long as it stays inside `after`.

    Each round makes it twice as long: a jump over as many links as there are leads from each to one of the next.
    """
    end = len(after)
    jump = np.append(np.minimum(after, end), end)
    chain = np.array([min(first, end)])
    while chain[-1] < end:
        chain = np.concatenate([chain, jump[chain]])
        jump = jump[jump]
    return chain[chain < end]


def open_windows(
    shards: TokenShards, source: TokenSource, context_length: int, packing: Packing, *, jitter: bool
) -> StreamWindows | DocumentWindows:
    """The windows of one stretch of the split. Raises DataError if it has none."""
    if packing == "stream":
        windows: StreamWindows | DocumentWindows = StreamWindows(source, context_length, jitter=jitter)
    else:
        windows = DocumentWindows(source, context_length, shards.documents)
    if not windows.count:
        named = f"the {shards.split} split" + (f"'s source {source.name}" if source.name else "")
        place = "" if packing == "stream" else " from the beginning of a document on"
        raise DataError(
            f"{named} has {source.tokens} tokens, fewer than one window of "
            f"model.context_length={context_length}{place}: use more text or a shorter context"
        )
    return windows
