"""Batched decoding with a KV cache: each sequence has its own prompt, length, sampling parameters and seed."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmcore.generate.compiled_step import CompiledStep
from lmcore.generate.prompt_lookup import PromptLookup
from lmcore.generate.sampling import Sampling, choose
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.model.tidar import Layout


@dataclass(frozen=True)
class Request:
    """A `prompt` (tokens, at least one) to continue, the sampling parameters, and the seed that decides its draws.

    `logprobs` asks for the log-probabilities of the chosen token and of so many likeliest ones. `stop` are the texts
    that end it; `text_stream` looks for them, the decoder does not.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling
    seed: int = 0
    logprobs: int | None = None
    stop: Sequence[str] = ()


@dataclass(frozen=True)
class Token:
    """One new token of the sequence `key`; after the last one (`is_last`) nothing follows.

    `logprob` is the model's own, in nats, before temperature and limits; `likeliest` are (token, logprob), best first.
    """

    key: int
    token: int
    is_last: bool
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


# Of a chosen token: its log-probability, and the likeliest tokens with theirs.
Measure = tuple[float | None, tuple[tuple[int, float], ...]]


@dataclass
class ActiveSequence:
    """A sequence that is being decoded. The cache's row of the same index holds what the model attends to."""

    key: int
    request: Request
    tokens: list[int]
    draws: NDArray[np.float64]  # (max_new_tokens,), one for each new token, whatever else is decoded
    lookup: PromptLookup = field(default_factory=PromptLookup)
    draft: list[int] = field(default_factory=list)  # TiDAR's draft tokens for the next step
    start: int = 0  # of what the model attends to, in `tokens`

    @property
    def new(self) -> int:
        """The number of tokens that have been chosen."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def length(self) -> int:
        """The number of tokens that the model attends to."""
        return len(self.tokens) - self.start


@dataclass
class DecodingStats:
    """The yield of speculative decoding: `tokens` from `forwards` of single sequences, draft tokens and accepted ones.

    `given` counts the forwards by the number of tokens that they gave.
    """

    forwards: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    given: Counter[int] = field(default_factory=Counter)


class Decoder:
    """Decodes up to `batch` sequences at once; one that ends makes room for the next (continuous batching).

    A sequence that is longer than the context, or has filled it, continues from its last context_length // 2 tokens.
    Ids outside of `allowed` (tokens, None: all) are never chosen. `capacity` is the length of the longest sequence,
    prompt included (None: a context). With `draft_tokens` prompt lookup proposes so many, and one forward verifies
    them. A sequence is the same whatever else is decoded beside it, with or without draft tokens, but for rounding:
    products over more rows add in another order.
    """

    drafts_by_itself: ClassVar[bool] = False  # without `draft_tokens`

    def __init__(
        self,
        model: GPT,
        *,
        batch: int,
        end_of_text: int,
        allowed: Iterable[int] | None = None,
        draft_tokens: int = 0,
        capacity: int | None = None,
        compile: bool = False,  # noqa: A002
    ) -> None:
        assert not model.training
        params, weight = model.params, model.token_embedding.weight
        self.model, self.batch, self.end_of_text = model, batch, end_of_text
        self.device, self.context_length = weight.device, params.context_length
        self.draft_tokens, self.stats = draft_tokens, DecodingStats()
        self.active: list[ActiveSequence] = []
        self.forbidden = torch.zeros(model.vocab_size, dtype=torch.bool)
        if allowed is not None:
            self.forbidden = ~self.forbidden.index_fill(0, torch.tensor(sorted(allowed)), True)
        self.forbidden = self.forbidden.nonzero().flatten().to(self.device)
        self.capacity = min(params.context_length, capacity or params.context_length)
        self.cache = model.build_cache(batch, self.capacity, self.count_scratch(params))
        forwards = self.list_forwards() if compile else ()
        self.compiled = {count: CompiledStep(model, self.cache, layout) for count, layout in forwards}

    @classmethod
    def count_scratch(cls, params: ModelParams) -> int:  # noqa: ARG003
        """Return the positions of the cache behind a sequence for what is no part of it."""
        return 0

    @classmethod
    def count_row_bytes(cls, model: GPT, capacity: int) -> int:
        """Return the memory of a sequence of `capacity` tokens."""
        params = model.params
        return 8 * params.n_layers * (capacity + cls.count_scratch(params)) * params.kv_heads * params.head_width

    def list_forwards(self) -> list[tuple[int, Layout | None]]:
        """Return the numbers of new tokens that a forward may have per sequence, each with its attention layout."""
        return [(time, None) for time in sorted({1, 1 + self.draft_tokens})]

    def decode(self, requests: Iterable[Request]) -> Iterator[Token]:
        """Yield the tokens of all `requests` as they come; a request's index is its tokens' `key`.

        Closing the iterator cancels the rest.
        """
        assert not self.active, "another list is being decoded"
        waiting = enumerate(requests)
        try:
            while True:
                for key, request in islice(waiting, self.batch - len(self.active)):
                    self.admit(key, request)
                if not self.active:
                    return
                yield from self.step()
        finally:
            self.active.clear()

    @torch.inference_mode()
    def admit(self, key: int, request: Request) -> None:
        """Add a sequence, for which there must be room, and read all of its prompt but the last token."""
        assert len(self.active) < self.batch
        assert request.prompt
        assert request.max_new_tokens > 0
        generator = torch.Generator().manual_seed(request.seed)
        draws = torch.rand(request.max_new_tokens, generator=generator, dtype=torch.float64).numpy()
        sequence = ActiveSequence(key, request, list(request.prompt), draws)
        self.active.append(sequence)
        if len(sequence.tokens) > self.context_length:
            self._move_window(sequence)
            return
        for row, other in enumerate(self.active[:-1]):
            if other.start == 0 and other.request.prompt == request.prompt:
                self.cache.copy_row(row, len(self.active) - 1, len(sequence.tokens) - 1)
                return
        self._read(sequence)

    def cancel(self, key: int) -> None:
        """Remove the sequence `key` if it is active."""
        for row, sequence in enumerate(self.active):
            if sequence.key == key:
                self._remove(row)
                return

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Run one forward of all active sequences: each gets a new token after those draft tokens that were right."""
        for sequence in self.active:
            if sequence.length > self.context_length:
                self._move_window(sequence)
        drafts = [self._draft(sequence) for sequence in self.active]
        starts = [sequence.length - 1 for sequence in self.active]
        time = 1 + (self.draft_tokens if self.compiled and any(drafts) else max(map(len, drafts)))
        time = min(time, self.capacity - max(starts))
        drafts = [draft[: time - 1] for draft in drafts]
        unread = [[sequence.tokens[-1], *draft] for sequence, draft in zip(self.active, drafts, strict=True)]
        unread = [some + [0] * (time - len(some)) for some in unread]
        logits = self._compute_logits(unread, starts)  # (B, T, V)
        chosen = [accept(*pair) for pair in zip(drafts, self._choose(logits, drafts), strict=True)]
        measured = measure_logprobs(logits, chosen, [sequence.request.logprobs for sequence in self.active])
        new: list[Token] = []
        for sequence, draft, tokens, measures in zip(self.active, drafts, chosen, measured, strict=True):
            new += self._append(sequence, draft, tokens, measures)
        self._look_ahead(chosen)
        ended = {token.key for token in new if token.is_last}
        for row in reversed(range(len(self.active))):
            if self.active[row].key in ended:
                self._remove(row)
        return new

    def _look_ahead(self, chosen: list[list[int]]) -> None:
        """Prepare the next step after a forward that gave the `chosen` tokens."""

    def _compute_logits(self, unread: list[list[int]], starts: list[int], layout: Layout | None = None) -> Tensor:
        """Return the logits (B, T, V) after each of the `unread` (B, T), which follow the first `starts` tokens.

        One after the other, or in a `layout`.
        """
        time = len(unread[0])
        if step := self.compiled.get(time):
            # It computes all rows; what it writes into unused ones is overwritten later.
            rest = self.batch - len(unread)
            tokens = torch.tensor(unread + [[0] * time] * rest, device=self.device)
            logits = step(tokens, torch.tensor(starts + [0] * rest, device=self.device))[: len(unread)]
        else:
            tokens = torch.tensor(unread, device=self.device)
            logits = self.model.logits(self.model.hidden(tokens, self.cache.extend(starts, time, layout=layout)))
        return logits.float()

    def _choose(self, logits: Tensor, drafts: list[list[int]]) -> list[list[int]]:
        """Return each sequence's next token after its text and after each of its draft tokens, taken for right.

        Where a draft token is wrong, those after it count for nothing; up to there the tokens are exactly those that
        would have been chosen one by one, of any draft source and at any temperature: a draw belongs to its place in
        the text.
        """
        left = [sequence.request.max_new_tokens - sequence.new for sequence in self.active]
        groups: dict[Sampling, list[tuple[int, int]]] = {}
        for row, (sequence, draft) in enumerate(zip(self.active, drafts, strict=True)):
            if places := [(row, at) for at in range(min(len(draft) + 1, left[row]))]:
                groups.setdefault(sequence.request.sampling, []).extend(places)
        picked: dict[tuple[int, int], int] = {}
        for sampling, some in groups.items():
            index = torch.tensor(some, device=self.device).T
            draws = torch.tensor([self.active[row].draws[self.active[row].new + at] for row, at in some])
            looks_back = sampling.repetition_penalty != 1
            texts = [self.active[row].tokens + drafts[row][:at] for row, at in some] if looks_back else []
            scores = logits[index[0], index[1]]  # a copy
            tokens = choose(scores.index_fill_(1, self.forbidden, -torch.inf), sampling, draws, texts).tolist()
            picked.update(zip(some, tokens, strict=True))
        chosen: list[list[int]] = [[] for _ in drafts]
        for (row, _), token in sorted(picked.items()):
            chosen[row].append(token)
        return chosen

    def _append(
        self, sequence: ActiveSequence, draft: list[int], chosen: list[int], measured: list[Measure]
    ) -> list[Token]:
        """Append the `chosen` tokens to a sequence, all but the last of them accepted draft tokens, and count them."""
        new = []
        for token, measure in zip(chosen, measured, strict=True):
            sequence.tokens.append(token)
            is_last = token == self.end_of_text or sequence.new == sequence.request.max_new_tokens
            new.append(Token(sequence.key, token, is_last, *measure))
            if is_last:
                break
        self.stats.forwards += 1
        self.stats.tokens += len(new)
        self.stats.given[len(new)] += 1
        self.stats.drafted += len(draft)
        self.stats.accepted += min(len(chosen) - 1, len(new))
        return new

    def _draft(self, sequence: ActiveSequence) -> list[int]:
        room = min(self.draft_tokens, sequence.request.max_new_tokens - sequence.new - 1)
        return self._propose(sequence, room) if room > 0 else []

    def _propose(self, sequence: ActiveSequence, count: int) -> list[int]:
        """Return at most `count` draft tokens of any source; the decoder accepts those that it would have chosen."""
        return sequence.lookup.propose(sequence.tokens, count)

    def _move_window(self, sequence: ActiveSequence) -> None:
        """Let the model attend to the last half of a context alone."""
        sequence.start = len(sequence.tokens) - self.context_length // 2
        self._read(sequence)

    def _read(self, sequence: ActiveSequence) -> None:
        """Put what the model attends to into the cache, but for the last token."""
        tokens = sequence.tokens[sequence.start : -1]
        if tokens:
            row = next(row for row, other in enumerate(self.active) if other is sequence)
            self.model.hidden(torch.tensor([tokens], device=self.device), self.cache.extend([0], len(tokens), row))

    def _remove(self, row: int) -> None:
        """Move the last sequence into the place of another, so that the active ones stay side by side."""
        last = self.active.pop()
        if row < len(self.active):
            self.cache.copy_row(len(self.active), row, last.length)
            self.active[row] = last


def accept(draft: list[int], chosen: list[int]) -> list[int]:
    """Return the draft tokens up to the first that differs from the one `chosen` in its place, and one token more."""
    right = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(draft, chosen, strict=False))))
    return chosen[: right + 1]


def measure_logprobs(
    logits: Tensor, chosen: Sequence[Sequence[int]], counts: Sequence[int | None]
) -> list[list[Measure]]:
    """Return the log-probabilities of each sequence's chosen tokens by `logits` (B, T, V), and `counts` likeliest ones.

    Nothing where a count is None. All are computed at once, which gives the same bits as one by one.
    """
    measured: list[list[Measure]] = [[(None, ())] * len(tokens) for tokens in chosen]
    places = [(row, at) for row, tokens in enumerate(chosen) if counts[row] is not None for at in range(len(tokens))]
    if not places:
        return measured
    index = torch.tensor(places, device=logits.device).T
    logprobs = logits[index[0], index[1]].log_softmax(-1)  # (N, V)
    tokens = torch.tensor([chosen[row][at] for row, at in places], device=logits.device)
    own = logprobs.gather(1, tokens[:, None]).flatten().tolist()
    likeliest: dict[int, tuple[tuple[int, float], ...]] = {}
    for count in {count for count in counts if count}:
        some = [number for number, (row, _) in enumerate(places) if counts[row] == count]
        best = logprobs[some].topk(min(count, logprobs.shape[1]))
        for number, ids, values in zip(some, best.indices.tolist(), best.values.tolist(), strict=True):
            likeliest[number] = tuple(zip(ids, values, strict=True))
    for number, ((row, at), logprob) in enumerate(zip(places, own, strict=True)):
        measured[row][at] = (logprob, likeliest.get(number, ()))
    return measured
