"""The thread that owns the decoder: texts come in at any time, are decoded side by side, and go out in pieces."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import torch

from lmcore.generate.decoder import Decoder, Measure, Request, Tally, measure_logprobs
from lmcore.generate.sampling import Sampling
from lmcore.generate.text_stream import OpenTexts, Piece
from lmcore.model.gpt import GPT
from lmcore.serve.api_errors import ApiError
from lmcore.serve.metrics import Metrics
from lmcore.tokenizer.base import Tokenizer

# Of prompts that are read between two steps, if there is more than one: all other texts stand still meanwhile.
PROMPT_TOKENS = 1024
POSITIONS = 128  # of a prompt whose logits are there at once
NEVER_COME = "the model failed, and answers nothing until the server is started again"


@dataclass(frozen=True)
class TextRequest:
    """One text that a client asks for; with `measures_prompt` the log-probabilities of its prompt too."""

    request: Request
    measures_prompt: bool = False


@dataclass(frozen=True)
class Beginning:
    """What was measured of a text's prompt: an entry for each token, without figures for the first."""

    key: int
    measures: list[Measure]


Item = Piece | Beginning


class Submission:
    """The texts of one client's request; what comes of them is read in the event loop, their places being the keys."""

    def __init__(self, count: int, *, streams: bool) -> None:
        self.keys: range = range(0)
        self.started = time.monotonic()
        self._streams, self._open = streams, count
        self._items: list[Item] = []
        self._error: Exception | None = None
        self._event = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether all has come, and been read."""
        return not self._open and not self._items

    async def read(self) -> list[Item]:
        """What has come since the last time, as soon as there is something; without `streams`, all in the end.

        Raises ApiError when no more will come.
        """
        await self._event.wait()
        self._event.clear()
        if self._error:
            raise self._error
        items, self._items = self._items, []
        return items

    def receive(self, items: Sequence[Item]) -> None:
        """In the event loop: what the engine has made."""
        self._items += items
        self._open -= sum(isinstance(item, Piece) and item.finish is not None for item in items)
        if self._streams or not self._open:
            self._event.set()

    def fail(self, error: Exception) -> None:
        """In the event loop: no more will come."""
        self._error = error
        self._event.set()


@dataclass
class Text:
    """A text that waits or is being decoded."""

    key: int
    place: int  # among its submission's
    asked: TextRequest
    submission: Submission
    tokens: int = 0


@dataclass
class Turn:
    """What one round of the thread has made for each submission."""

    items: dict[Submission, list[Item]] = field(default_factory=dict)
    tokens: int = 0

    def add(self, submission: Submission, item: Item) -> None:
        """Something for one of them."""
        self.items.setdefault(submission, []).append(item)


class Engine:
    """Up to `decoder.batch` texts are decoded at once and `queue` wait; all methods are for the event loop's thread."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, queue: int, metrics: Metrics) -> None:
        self.decoder, self.most_texts = decoder, decoder.batch + queue
        self.failure: Exception | None = None
        self._metrics, self._texts = metrics, OpenTexts(decoder, tokenizer)
        self._numbers = count()
        # Under the condition: texts that wait and those in the decoder by key, and keys of which nobody wants more.
        self._condition = threading.Condition()
        self._waiting: dict[int, Text] = {}
        self._running: dict[int, Text] = {}
        self._given_up: deque[int] = deque()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop
        self._ready: asyncio.Future[None]
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        metrics.rows.set(decoder.batch)
        metrics.waiting.set_function(lambda: len(self._waiting))
        metrics.running.set_function(lambda: len(self._running))

    async def start(self) -> None:
        """Begin to work for the event loop that runs; comes back when whatever is compiled is so."""
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        self._thread.start()
        await self._ready

    def stop(self) -> None:
        """End after the step at hand; nothing more comes of what is open."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join()

    def submit(self, texts: Sequence[TextRequest], *, streams: bool) -> Submission:
        """Put texts in line, all or none. Raises ApiError where the queue is full or the engine has failed."""
        submission = Submission(len(texts), streams=streams)
        with self._condition:
            if self.failure:
                raise ApiError(500, NEVER_COME)
            in_work = len(self._waiting) + len(self._running)
            if in_work + len(texts) > self.most_texts:
                raise ApiError(
                    429,
                    f"{in_work} texts are in work or waiting, of {self.most_texts}, and this asks for {len(texts)}: "
                    f"try again later",
                    code="queue_full",
                    headers={"Retry-After": "1"},
                )
            keys = [next(self._numbers) for _ in texts]
            submission.keys = range(keys[0], keys[-1] + 1)
            for place, (key, text) in enumerate(zip(keys, texts, strict=True)):
                self._waiting[key] = Text(key, place, text, submission)
            self._condition.notify()
        return submission

    def cancel(self, submission: Submission) -> None:
        """Give up what is left of a submission: its places in line and its rows are free for others."""
        with self._condition:
            for key in submission.keys:
                self._waiting.pop(key, None)
                if self._running.pop(key, None):
                    self._given_up.append(key)
            self._condition.notify()

    def fail_all(self, error: Exception) -> None:
        """Answer whatever is open with `error`."""
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
                turn = Turn()
                for text in admitted:
                    self._admit(text, turn)
                if self.decoder.rows:
                    self._step(turn)
                self._tell(turn)
        except Exception as error:
            logging.getLogger("lmcore.serve").exception("the engine failed")
            with self._condition:
                self.failure = error
            self._loop.call_soon_threadsafe(self.fail_all, ApiError(500, NEVER_COME))

    def _warm_up(self) -> None:
        """Decode a little: a step of one token, and one of drafts, which the repeated prompt makes."""
        end = self.decoder.end_of_text
        for prompt, tokens in (([end], 1), ([end] * 4, 2)):
            list(self.decoder.decode([Request(prompt[: self.decoder.context_length], tokens, Sampling())]))
        self.decoder.tally = Tally()

    def _await_work(self) -> list[Text] | None:
        """Wait until there is something to do; the texts that are to be taken in now, None at the end."""
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._running or self._given_up or self._stopping)
            if self._stopping:
                return None
            while self._given_up:
                self._texts.discard(self._given_up.popleft())
            admitted: list[Text] = []
            budget = PROMPT_TOKENS
            while self._waiting and len(self.decoder.rows) + len(admitted) < self.decoder.batch:
                text = next(iter(self._waiting.values()))
                budget -= len(text.asked.request.prompt)
                if admitted and budget < 0:
                    break
                self._running[text.key] = self._waiting.pop(text.key)
                admitted.append(text)
            return admitted

    def _admit(self, text: Text, turn: Turn) -> None:
        request = text.asked.request
        self._metrics.prompt_tokens.inc(len(request.prompt))
        if text.asked.measures_prompt:
            measures = measure_prompt(self.decoder.model, request.prompt, request.logprobs or 0)
            turn.add(text.submission, Beginning(text.place, measures))
        self._texts.open(text.key, request.stop)
        self.decoder.admit(text.key, request)

    def _step(self, turn: Turn) -> None:
        tokens, now = self.decoder.step(), time.monotonic()
        for token in tokens:
            piece = self._texts.read(token)
            text = self._running.get(token.key)  # not there once the client has gone
            if piece is None or text is None:
                continue
            turn.tokens += 1
            turn.add(text.submission, Piece(text.place, piece.text, token, piece.finish))
            if not text.tokens:
                self._metrics.first_token_seconds.observe(now - text.submission.started)
            text.tokens += 1
            if piece.finish:
                with self._condition:
                    self._running.pop(text.key, None)
                self._metrics.text_rate.observe(text.tokens / max(now - text.submission.started, 1e-9))

    def _tell(self, turn: Turn) -> None:
        """Hand all that a turn made to the event loop, at once: to wake it takes as long as a small model's step."""
        if turn.items:
            self._metrics.generated_tokens.inc(turn.tokens)
            self._loop.call_soon_threadsafe(deliver, turn)


def deliver(turn: Turn) -> None:
    """In the event loop: give each submission what is its own."""
    for submission, items in turn.items.items():
        submission.receive(items)


@torch.inference_mode()
def measure_prompt(model: GPT, prompt: Sequence[int], count: int) -> list[Measure]:
    """The log-probability of each token of a prompt after those before it, and of the `count` likeliest there."""
    hidden = model.hidden(torch.tensor([prompt], device=model.token_embedding.weight.device))  # (1, T, D)
    measures: list[Measure] = [(None, ())]
    for start in range(0, len(prompt) - 1, POSITIONS):
        end = min(start + POSITIONS, len(prompt) - 1)
        logits = model.logits(hidden[:, start:end]).float()
        measures += measure_logprobs(logits, [prompt[start + 1 : end + 1]], [count])[0]
    return measures
