"""The decoding engine: many texts side by side, each with its own prompt, length, settings and seed, token by token."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmcore.generate.compiled_step import CompiledStep
from lmcore.generate.prompt_lookup import DraftSource, OpenDrafts
from lmcore.generate.sampling import Sampling, choose
from lmcore.model.gpt import GPT
from lmcore.model.tidar import Layout


@dataclass(frozen=True)
class Request:
    """A text to go on with: `prompt` (tokens, at least one), how far and how, and the seed that decides its draws.

    `logprobs` asks for the log-probabilities of the chosen token and of so many likeliest ones. `stop` are texts that
    end it, which whoever makes text of the tokens looks for.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling
    seed: int = 0
    logprobs: int | None = None
    stop: Sequence[str] = ()


@dataclass(frozen=True)
class Token:
    """One new token of the text `key`; after the last one (`is_last`) nothing follows.

    `logprob` is the model's own, in nats, before any setting; `likeliest` are (token, logprob), the best first.
    """

    key: int
    token: int
    is_last: bool
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


# Of a chosen token: its log-probability, and the likeliest tokens with theirs.
Measure = tuple[float | None, tuple[tuple[int, float], ...]]


@dataclass
class Row:
    """A text in work, in the cache's row of the same place: what the model sees of it but for the last token."""

    key: int
    request: Request
    tokens: list[int]
    draws: NDArray[np.float64]  # (max_new_tokens,), one for each new token, whatever else is decoded
    drafts: DraftSource | None
    start: int = 0  # of what the model sees, in `tokens`

    @property
    def new(self) -> int:
        """How many tokens have been chosen."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def length(self) -> int:
        """Of what the model sees."""
        return len(self.tokens) - self.start


@dataclass
class Tally:
    """What drafting gave: `tokens` came out of `forwards` of a row, `drafted` of them were proposed before.

    `given` counts the forwards that gave so many tokens.
    """

    forwards: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    given: Counter[int] = field(default_factory=Counter)


class Decoder:
    """Up to `batch` texts at once; one that ends makes room for the next at any time (continuous batching).

    A text that is longer than the context, or has filled it, goes on from its last context_length // 2 tokens. Ids
    outside of `allowed` (tokens, None: all) are never chosen. `capacity` is the longest text that there will be, prompt
    included (None: a context). A text is the same whatever else is decoded beside it, with or without drafts, but for
    rounding: products over more rows add in another order.
    """

    def __init__(
        self,
        model: GPT,
        *,
        batch: int,
        end_of_text: int,
        allowed: Iterable[int] | None = None,
        open_drafts: OpenDrafts | None = None,
        draft_tokens: int = 0,
        capacity: int | None = None,
        compile: bool = False,  # noqa: A002
    ) -> None:
        assert not model.training
        params, weight = model.params, model.token_embedding.weight
        self.model, self.batch, self.end_of_text = model, batch, end_of_text
        self.device, self.context_length = weight.device, params.context_length
        self.open_drafts, self.draft_tokens = open_drafts, draft_tokens
        self.rows: list[Row] = []
        self.tally = Tally()
        self.forbidden = torch.zeros(model.vocab_size, dtype=torch.bool)
        if allowed is not None:
            self.forbidden = ~self.forbidden.index_fill(0, torch.tensor(sorted(allowed)), True)
        self.forbidden = self.forbidden.nonzero().flatten().to(self.device)
        self.capacity = min(params.context_length, capacity or params.context_length)
        self.cache = model.build_cache(batch, self.capacity, self.scratch)
        forwards = self.list_forwards() if compile else ()
        self.compiled = {count: CompiledStep(model, self.cache, layout) for count, layout in forwards}

    @property
    def scratch(self) -> int:
        """Places in the cache behind a text for what is no part of it."""
        return 0

    def list_forwards(self) -> list[tuple[int, Layout | None]]:
        """How many new tokens of a row a forward may have, and how they see each other."""
        return [(time, None) for time in sorted({1, 1 + self.draft_tokens})]

    def decode(self, requests: Iterable[Request]) -> Iterator[Token]:
        """The tokens of all `requests`, as they come; a request's place in the list is its tokens' `key`.

        What is left when nobody wants more of them is given up.
        """
        assert not self.rows, "another list is being decoded"
        waiting = enumerate(requests)
        try:
            while True:
                for key, request in islice(waiting, self.batch - len(self.rows)):
                    self.admit(key, request)
                if not self.rows:
                    return
                yield from self.step()
        finally:
            self.rows.clear()

    @torch.inference_mode()
    def admit(self, key: int, request: Request) -> None:
        """Take a text in: all of its prompt but the last token is read. There must be room (`rows` < `batch`)."""
        assert len(self.rows) < self.batch
        assert request.prompt
        assert request.max_new_tokens > 0
        generator = torch.Generator().manual_seed(request.seed)
        draws = torch.rand(request.max_new_tokens, generator=generator, dtype=torch.float64).numpy()
        row = Row(key, request, list(request.prompt), draws, self.open_drafts and self.open_drafts())
        self.rows.append(row)
        if len(row.tokens) > self.context_length:
            self._move_window(row)
            return
        for source, other in enumerate(self.rows[:-1]):
            if other.start == 0 and other.request.prompt == request.prompt:
                self.cache.copy_row(source, len(self.rows) - 1, len(row.tokens) - 1)
                return
        self._read(row)

    def cancel(self, key: int) -> None:
        """Give up the text `key`, if it is still in work."""
        for place, row in enumerate(self.rows):
            if row.key == key:
                self._remove(place)
                return

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """One forward of all rows: a new token of each, and those drafts that turned out right."""
        for row in self.rows:
            if row.length > self.context_length:
                self._move_window(row)
        drafts = [self._draft(row) for row in self.rows]
        starts = [row.length - 1 for row in self.rows]
        time = 1 + (self.draft_tokens if self.compiled and any(drafts) else max(map(len, drafts)))
        time = min(time, self.capacity - max(starts))
        drafts = [draft[: time - 1] for draft in drafts]
        unread = [[row.tokens[-1], *draft] for row, draft in zip(self.rows, drafts, strict=True)]
        unread = [some + [0] * (time - len(some)) for some in unread]
        logits = self._compute_logits(unread, starts)  # (B, T, V)
        chosen = [keep_right(*pair) for pair in zip(drafts, self._choose(logits, drafts), strict=True)]
        measured = measure_logprobs(logits, chosen, [row.request.logprobs for row in self.rows])
        new: list[Token] = []
        for row, draft, tokens, measures in zip(self.rows, drafts, chosen, measured, strict=True):
            new += self._take(row, draft, tokens, measures)
        self._look_ahead(chosen)
        ended = {token.key for token in new if token.is_last}
        for place in reversed(range(len(self.rows))):
            if self.rows[place].key in ended:
                self._remove(place)
        return new

    def _look_ahead(self, chosen: list[list[int]]) -> None:
        """Take from a forward that has `chosen` what is of use for the next one."""

    def _compute_logits(self, unread: list[list[int]], starts: list[int], layout: Layout | None = None) -> Tensor:
        """The scores (B, T, V) that follow each of the `unread` (B, T), which come after the first `starts` tokens.

        One after the other, or as a `layout` says.
        """
        time = len(unread[0])
        if step := self.compiled.get(time):
            # It computes all rows always; what it writes into those at rest is written over.
            rest = self.batch - len(unread)
            tokens = torch.tensor(unread + [[0] * time] * rest, device=self.device)
            logits = step(tokens, torch.tensor(starts + [0] * rest, device=self.device))[: len(unread)]
        else:
            tokens = torch.tensor(unread, device=self.device)
            logits = self.model.logits(self.model.hidden(tokens, self.cache.extend(starts, time, layout=layout)))
        return logits.float()

    def _choose(self, logits: Tensor, drafts: list[list[int]]) -> list[list[int]]:
        """What each row would say after its text and after each of its drafts, all taken for right.

        Where a draft is wrong, what comes after it counts for nothing; up to there it is exactly what would have been
        chosen token by token, of any draft source and at any temperature: the draws belong to places in the text.
        """
        chosen: list[list[int]] = [[] for _ in drafts]
        places = [(row, at) for row, draft in enumerate(drafts) for at in range(len(draft) + 1)]
        places = [(row, at) for row, at in places if self.rows[row].new + at < self.rows[row].request.max_new_tokens]
        groups: dict[Sampling, list[tuple[int, int]]] = {}
        for row, at in places:
            groups.setdefault(self.rows[row].request.sampling, []).append((row, at))
        picked: dict[tuple[int, int], int] = {}
        for sampling, some in groups.items():
            index = torch.tensor(some, device=self.device).T
            draws = torch.tensor([self.rows[row].draws[self.rows[row].new + at] for row, at in some])
            looks_back = sampling.repetition_penalty != 1
            texts = [self.rows[row].tokens + drafts[row][:at] for row, at in some] if looks_back else []
            scores = logits[index[0], index[1]]  # a copy
            tokens = choose(scores.index_fill_(1, self.forbidden, -torch.inf), sampling, draws, texts).tolist()
            picked.update(zip(some, tokens, strict=True))
        for row, at in places:
            chosen[row].append(picked[row, at])
        return chosen

    def _take(self, row: Row, draft: list[int], chosen: list[int], measured: list[Measure]) -> list[Token]:
        """Append to a row what was chosen, all drafts but the last one being right, and tell it."""
        new = []
        for token, measure in zip(chosen, measured, strict=True):
            row.tokens.append(token)
            is_last = token == self.end_of_text or row.new == row.request.max_new_tokens
            new.append(Token(row.key, token, is_last, *measure))
            if is_last:
                break
        self.tally.forwards += 1
        self.tally.tokens += len(new)
        self.tally.given[len(new)] += 1
        self.tally.drafted += len(draft)
        self.tally.accepted += min(len(chosen) - 1, len(new))
        return new

    def _draft(self, row: Row) -> list[int]:
        room = min(self.draft_tokens, row.request.max_new_tokens - row.new - 1)
        return row.drafts.propose(row.tokens, room) if row.drafts and room > 0 else []

    def _move_window(self, row: Row) -> None:
        """Let the model see the last half of a context alone."""
        row.start = len(row.tokens) - self.context_length // 2
        self._read(row)

    def _read(self, row: Row) -> None:
        """Put what the model sees of a row into the cache, but for its last token."""
        tokens = row.tokens[row.start : -1]
        if tokens:
            place = next(place for place, other in enumerate(self.rows) if other is row)
            self.model.hidden(torch.tensor([tokens], device=self.device), self.cache.extend([0], len(tokens), place))

    def _remove(self, place: int) -> None:
        """Let the last row take the place of another, so that those in work lie side by side."""
        last = self.rows.pop()
        if place < len(self.rows):
            self.cache.copy_row(len(self.rows), place, last.length)
            self.rows[place] = last


def keep_right(draft: list[int], chosen: list[int]) -> list[int]:
    """Of what was `chosen` after each token of a draft, what counts: the draft as far as it was right, and one more."""
    right = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(draft, chosen, strict=False))))
    return chosen[: right + 1]


def measure_logprobs(
    logits: Tensor, chosen: Sequence[Sequence[int]], counts: Sequence[int | None]
) -> list[list[Measure]]:
    """For each row's chosen tokens, their log-probabilities by `logits` (B, T, V) and its `counts` likeliest tokens.

    Nothing where a count is None. Those of all rows are computed at once, which gives the same bits as one by one.
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
