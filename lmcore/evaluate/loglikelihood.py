"""Log-likelihoods of continuations of contexts, for multiple choice and lm-evaluation-harness.

Texts are cut into tokens, and tokens that do not fit into the context are left out, as by lm-evaluation-harness's `hf`
model (EleutherAI, lm_eval/models/huggingface.py), so that its figures and ours agree item by item.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmcore.model.gpt import GPT
from lmcore.model.kv_cache import KeyValueCache
from lmcore.tokenizer.base import Tokenizer

LOGITS_BYTES = 32 << 20  # of logits (fp32) that are there at once
TOKENS_AT_ONCE = 8192  # of inputs, padding included
# Rows of a batch that are as long as each other go through the model together, so that little is padding: on a CPU so
# few tokens are enough to keep it busy (128 to 512 were alike), elsewhere the batch stays whole.
PIECE_TOKENS = {"cpu": 256}


class Score(NamedTuple):
    """Of one continuation: its log-probability in nats, and whether greedy decoding would have written it."""

    loglikelihood: float
    greedy: bool


class Pair(NamedTuple):
    """A context of one token or more, and what may follow it, one token or more."""

    context: list[int]
    continuation: list[int]


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Pair:
    """The two as tokens: those of the whole text, cut where the tokens of the context alone end.

    Spaces at the context's end go to the continuation, as most tokens begin with a space. An empty context is an
    end-of-text. The continuation may be left without a token, where one token spans the cut.
    """
    whole = tokenizer.encode(context + continuation)
    stripped = context.rstrip()
    if not stripped:
        return Pair([tokenizer.end_of_text], whole)
    before = tokenizer.encode(stripped)
    return Pair(before, whole[len(before) :])


@dataclass(frozen=True)
class PairInput:
    """The model's input for a pair, `tokens` without the last one; the last `count` are its targets."""

    place: tuple[int, int]  # of the pair: group, and place in it
    tokens: np.ndarray
    count: int

    @property
    def length(self) -> int:
        """Input tokens."""
        return len(self.tokens) - 1


@dataclass(frozen=True)
class Group:
    """Rows that begin with the same `shared` input tokens, which are no targets' predecessors in any of them."""

    rows: list[PairInput]
    shared: int

    @property
    def longest(self) -> int:
        """Input tokens of the longest row."""
        return max(row.length for row in self.rows)


@torch.inference_mode()
def score_pairs(model: GPT, groups: Sequence[Sequence[Pair]], batch_size: int) -> list[list[Score]]:
    """The scores of every pair; what the pairs of one group begin with in common is computed once.

    At most `batch_size` pairs are computed at once, fewer of long ones. Of a pair that is longer than the context and
    one token the beginning is left out; a continuation must fit into the context. The model is in evaluation mode.
    """
    assert not model.training
    scores: list[list[Score]] = [[Score(0.0, False)] * len(group) for group in groups]
    context_length = model.params.context_length
    cut = [part for place, group in enumerate(groups) for part in _cut_group(place, group, context_length, batch_size)]
    cut.sort(key=lambda group: (-group.shared, -group.longest))  # those that are alike side by side
    for batch in _fill_batches(cut, batch_size):
        for row, score in _score_batch(model, batch):
            scores[row.place[0]][row.place[1]] = score
    return scores


def _cut_group(place: int, pairs: Sequence[Pair], context_length: int, batch_size: int) -> Iterator[Group]:
    """The pairs as rows, cut to the model's context, in groups that a batch holds."""
    rows = []
    for number, (context, continuation) in enumerate(pairs):
        assert 0 < len(continuation) <= context_length, (len(continuation), context_length)
        tokens = np.array((context + continuation)[-(context_length + 1) :])
        rows.append(PairInput((place, number), tokens, len(continuation)))
    size = _count_rows(max((row.length for row in rows), default=1), batch_size)
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        yield Group(some, _count_shared(some))


def _count_rows(length: int, batch_size: int) -> int:
    """The most rows of so many tokens that are computed at once."""
    return min(batch_size, max(1, TOKENS_AT_ONCE // length))


def _count_shared(rows: Sequence[PairInput]) -> int:
    """Input tokens that all rows begin with; each keeps the one that predicts its first target."""
    if len(rows) == 1:
        return 0
    length = min(row.length - row.count for row in rows)
    stacked = np.stack([row.tokens[:length] for row in rows])
    equal = (stacked == stacked[0]).all(axis=0)
    return length if equal.all() else int(equal.argmin())


def _fill_batches(groups: Sequence[Group], batch_size: int) -> Iterator[list[Group]]:
    """Neighbours together, as many as are computed at once."""
    batch: list[Group] = []
    for group in groups:
        rows = sum(len(other.rows) for other in batch) + len(group.rows)
        if batch and rows > _count_rows(max(other.longest for other in [*batch, group]), batch_size):
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _score_batch(model: GPT, groups: Sequence[Group]) -> Iterator[tuple[PairInput, Score]]:
    """One pass over what the groups' rows share, and then the rest of each row, those of one length together."""
    device = model.token_embedding.weight.device
    shared = min(group.shared for group in groups)
    beginnings = None
    if shared:
        tokens = np.stack([group.rows[0].tokens[:shared] for group in groups])
        beginnings = model.build_cache(len(groups), shared)
        model.hidden(torch.from_numpy(tokens).to(device), beginnings.extend([0] * len(groups), shared))
    rows = [(row, owner) for owner, group in enumerate(groups) for row in group.rows]
    rows.sort(key=lambda pair: -pair[0].length)
    while rows:
        rest = rows[0][0].length - shared
        size = max(1, PIECE_TOKENS.get(device.type, TOKENS_AT_ONCE) // rest)
        some, owners = zip(*rows[:size], strict=True)
        cache = beginnings and _repeat_rows(model, beginnings, owners, shared + rest)
        yield from zip(some, _score_rows(model, some, shared, cache), strict=True)
        rows = rows[size:]


def _score_rows(model: GPT, rows: Sequence[PairInput], shared: int, cache: KeyValueCache | None) -> list[Score]:
    """The rest of some rows, the longest first, after the `shared` tokens that the cache holds of each."""
    device = model.token_embedding.weight.device
    time = rows[0].length - shared
    tokens = np.zeros((len(rows), time), np.int64)  # padded behind, where no target sees it
    for number, row in enumerate(rows):
        tokens[number, : row.length - shared] = row.tokens[shared:-1]
    room = cache.extend([shared] * len(rows), time) if cache else None
    hidden = model.hidden(torch.from_numpy(tokens).to(device), room)  # (R, T, D)
    ends = [number * time + row.length - shared for number, row in enumerate(rows)]
    before = np.concatenate([np.arange(end - row.count, end) for end, row in zip(ends, rows, strict=True)])
    targets = np.concatenate([row.tokens[-row.count :] for row in rows])
    costs, hits = _score_targets(model, hidden.flatten(0, 1)[torch.from_numpy(before).to(device)], targets)
    bounds = np.cumsum([row.count for row in rows])[:-1]
    parts = zip(np.split(costs, bounds), np.split(hits, bounds), strict=True)
    return [Score(float(cost.sum()), bool(hit.all())) for cost, hit in parts]


def _repeat_rows(model: GPT, cache: KeyValueCache, owners: Sequence[int], capacity: int) -> KeyValueCache:
    """A cache of `capacity` whose rows begin as those of `cache` that `owners` names, as often as it does."""
    repeated = model.build_cache(len(owners), capacity)
    chosen = torch.tensor(owners, device=cache.tokens.device)
    sources, targets = ([*each.keys, *each.values, each.tokens] for each in (cache, repeated))
    for source, target in zip(sources, targets, strict=True):
        target[:, : cache.capacity] = source[chosen]
    return repeated


def _score_targets(model: GPT, hidden: Tensor, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The log-probability of each of `targets` (N,) after the states `hidden` (N, D), and whether none is likelier."""
    size = max(1, LOGITS_BYTES // (4 * model.vocab_size))
    costs, hits = [], []
    for rows, right in zip(hidden.split(size), torch.from_numpy(targets).to(hidden.device).split(size), strict=True):
        logits = model.logits(rows).float()
        costs.append(-F.cross_entropy(logits, right, reduction="none"))
        hits.append(logits.argmax(dim=-1) == right)
    return torch.cat(costs).cpu().double().numpy(), torch.cat(hits).cpu().numpy()
