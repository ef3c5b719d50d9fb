"""The thread that owns the decoder: continuous batching of the requests of all clients."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lmcore.generate.decoder import Decoder, DecodingStats, Measure, Request, measure_logprobs
from lmcore.generate.sampling import Sampling
from lmcore.generate.text_stream import OpenTexts, Piece
from lmcore.model.gpt import GPT
from lmcore.serve.api_errors import ApiError
from lmcore.serve.metrics import Metrics
from lmcore.tokenizer.base import Tokenizer

# Of prompts that are read between two steps, if there is more than one: all active sequences wait meanwhile.
PROMPT_TOKENS = 1024
POSITIONS = 128  # of a prompt whose logits are in memory at once
ENGINE_FAILED = "the model failed, and answers nothing until the server is started again"


@dataclass(frozen=True)
class PromptLogprobs:
    """The log-probabilities of a prompt's tokens, none for the first."""

    key: int
    measures: list[Measure]


Item = Piece | PromptLogprobs


class Submission:
    """The sequences of one client's request; their items, with the sequence's index as key, are read in the event loop.

    With `echo_logprobs` the log-probabilities of the prompts come too.
    """

    def __init__(self, keys: range, *, streams: bool, echo_logprobs: bool) -> None:
        self.keys = keys  # in the engine
        self.started = time.monotonic()
        self.echo_logprobs = echo_logprobs
        self._streams, self._open = streams, len(keys)
        self._items: list[Item] = []
        self._error: Exception | None = None
        self._event = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """True once everything has come and been read."""
        return not self._open and not self._items

    async def read(self) -> list[Item]:
        """Wait for new items and return them; without `streams`, all of them at the end.

        Raises ApiError when no more will come.
        """
        await self._event.wait()
        self._event.clear()
        if self._error:
            raise self._error
        items, self._items = self._items, []
        return items

    def receive(self, items: Sequence[Item]) -> None:
        """Take the engine's items, in the event loop."""
        self._items += items
        self._open -= sum(isinstance(item, Piece) and item.finish is not None for item in items)
        if self._streams or not self._open:
            self._event.set()

    def fail(self, error: Exception) -> None:
        """Raise `error` where the items are read, in the event loop."""
        self._error = error
        self._event.set()


@dataclass
class Text:
    """A sequence that waits or is active."""

    key: int
    index: int  # among its submission's
    request: Request
    submission: Submission
    tokens: int = 0


# The items that one round of the thread has made for each submission.
Round = dict[Submission, list[Item]]


class Engine:
    """Decodes up to `decoder.batch` sequences at once while `queue` wait; the event loop's thread calls the methods."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, queue: int, metrics: Metrics) -> None:
        self.decoder, self.max_texts = decoder, decoder.batch + queue
        self.failure: Exception | None = None
        self._metrics, self._texts = metrics, OpenTexts(decoder, tokenizer)
        self._next_key = 0
        # Guarded by the condition: waiting and active sequences by key, and the keys of cancelled ones.
        self._condition = threading.Condition()
        self._waiting: dict[int, Text] = {}
        self._running: dict[int, Text] = {}
        self._cancelled: deque[int] = deque()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop
        self._ready: asyncio.Future[None]
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        metrics.rows.set(decoder.batch)
        metrics.waiting.set_function(lambda: len(self._waiting))
        metrics.running.set_function(lambda: len(self._running))

    async def start(self) -> None:
        """Start the thread for the running event loop; return after the compilation."""
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        self._thread.start()
        await self._ready

    def stop(self) -> None:
        """End after the current step; open submissions get no more items."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join()

    def submit(self, requests: Sequence[Request], *, streams: bool, echo_logprobs: bool) -> Submission:
        """Queue requests, all or none. Raises ApiError where the queue is full or the engine has failed."""
        with self._condition:
            if self.failure:
                raise ApiError(500, ENGINE_FAILED)
            count = len(self._waiting) + len(self._running)
            if count + len(requests) > self.max_texts:
                raise ApiError(
                    429,
                    f"{count} texts are active or waiting, of {self.max_texts}, and this asks for {len(requests)}: "
                    f"try again later",
                    code="queue_full",
                    headers={"Retry-After": "1"},
                )
            keys = range(self._next_key, self._next_key + len(requests))
            self._next_key = keys.stop
            submission = Submission(keys, streams=streams, echo_logprobs=echo_logprobs)
            for index, request in enumerate(requests):
                self._waiting[keys[index]] = Text(keys[index], index, request, submission)
            self._condition.notify()
        return submission

    def cancel(self, submission: Submission) -> None:
        """Cancel the rest of a submission: its places in the queue and in the batch are free for others."""
        with self._condition:
            for key in submission.keys:
                self._waiting.pop(key, None)
                if self._running.pop(key, None):
                    self._cancelled.append(key)
            self._condition.notify()

    def fail_all(self, error: Exception) -> None:
        """Fail all open submissions with `error`."""
        with self._condition:
            open_texts = [*self._waiting.values(), *self._running.values()]
        for submission in {text.submission for text in open_texts}:
            submission.fail(error)
            self.cancel(submission)
        if not self._ready.done():
            self._ready.set_exception(error)

    def _run(self) -> None:
        try:
            self._warm_up()
            self._loop.call_soon_threadsafe(self._ready.set_result, None)
            while (admitted := self._await_work()) is not None:
                items: Round = {}
                for text in admitted:
                    self._admit(text, items)
                if self.decoder.active:
                    self._step(items)
                if items:  # all at once: waking the event loop takes as long as a small model's step
                    self._loop.call_soon_threadsafe(deliver, items)
        except Exception as error:
            logging.getLogger("lmcore.serve").exception("the engine failed")
            with self._condition:
                self.failure = error
            self._loop.call_soon_threadsafe(self.fail_all, ApiError(500, ENGINE_FAILED))

    def _warm_up(self) -> None:
        """Compile: decode a step of one token, and one with draft tokens, which the repeated prompt causes."""
        end = self.decoder.end_of_text
        for prompt, tokens in (([end], 1), ([end] * 4, 2)):
            list(self.decoder.decode([Request(prompt[: self.decoder.context_length], tokens, Sampling())]))
        self.decoder.stats = DecodingStats()

    def _await_work(self) -> list[Text] | None:
        """Wait until there is something to do; return the sequences to admit now, None at the end."""
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._running or self._cancelled or self._stopping)
            if self._stopping:
                return None
            while self._cancelled:
                self._texts.discard(self._cancelled.popleft())
            admitted: list[Text] = []
            budget = PROMPT_TOKENS
            while self._waiting and len(self.decoder.active) + len(admitted) < self.decoder.batch:
                text = next(iter(self._waiting.values()))
                budget -= len(text.request.prompt)
                if admitted and budget < 0:
                    break
                self._running[text.key] = self._waiting.pop(text.key)
                admitted.append(text)
            return admitted

    def _admit(self, text: Text, items: Round) -> None:
        request = text.request
        self._metrics.prompt_tokens.inc(len(request.prompt))
        if text.submission.echo_logprobs:
            measures = measure_prompt(self.decoder.model, request.prompt, request.logprobs or 0)
            items.setdefault(text.submission, []).append(PromptLogprobs(text.index, measures))
        self._texts.open(text.key, request.stop)
        self.decoder.admit(text.key, request)

    def _step(self, items: Round) -> None:
        tokens, now, generated = self.decoder.step(), time.monotonic(), 0
        for token in tokens:
            piece = self._texts.read(token)
            text = self._running.get(token.key)  # None once the client has gone
            if piece is None or text is None:
                continue
            items.setdefault(text.submission, []).append(Piece(text.index, piece.text, token, piece.finish))
            generated += 1
            if not text.tokens:
                self._metrics.first_token_seconds.observe(now - text.submission.started)
            text.tokens += 1
            if piece.finish:
                with self._condition:
                    self._running.pop(text.key, None)
                self._metrics.text_rate.observe(text.tokens / max(now - text.submission.started, 1e-9))
        self._metrics.generated_tokens.inc(generated)


def deliver(items: Round) -> None:
    """Give each submission its items, in the event loop."""
    for submission, some in items.items():
        submission.receive(some)


@torch.inference_mode()
def measure_prompt(model: GPT, prompt: Sequence[int], count: int) -> list[Measure]:
    """Return the log-probability of each token of a prompt, and of the `count` likeliest tokens in its place."""
    hidden = model.hidden(torch.tensor([prompt], device=model.token_embedding.weight.device))  # (1, T, D)
    measures: list[Measure] = [(None, ())]
    for start in range(0, len(prompt) - 1, POSITIONS):
        end = min(start + POSITIONS, len(prompt) - 1)
        logits = model.logits(hidden[:, start:end]).float()
        measures += measure_logprobs(logits, [prompt[start + 1 : end + 1]], [count])[0]
    return measures
