"""From the engine's items to responses: the choices with their texts, tokens and log-probabilities."""

import codecs
import time
import uuid
from collections import deque
from collections.abc import Iterable, Sequence

from lmcore.generate.decoder import Measure
from lmcore.generate.text_stream import Finish
from lmcore.serve.engine import Item, PromptLogprobs
from lmcore.serve.openai_schema import Choice, CompletionRequest, CompletionResponse, Logprobs, Usage
from lmcore.serve.parse_request import TokenPrompt
from lmcore.tokenizer.base import Tokenizer


class TokenPlaces:
    """The offsets of tokens in a text, in characters; the rest of a character begins where that does."""

    def __init__(self, tokenizer: Tokenizer, start: int) -> None:
        self._tokenizer, self._seen = tokenizer, start
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def place(self, token: int) -> int:
        """Return the offset of the next token."""
        start = self._seen
        self._seen += len(self._decoder.decode(self._tokenizer.token_bytes(token)))
        return start


class ChoiceWriter:
    """Writes one choice of a response, as its text comes.

    A token is written with the text that it begins: half a character waits for its rest, and a stop string, which is
    not written, takes its tokens along. An end-of-text that ends the text is written.
    """

    def __init__(self, index: int, body: CompletionRequest, prompt: TokenPrompt, tokenizer: Tokenizer) -> None:
        self.generated = 0  # tokens
        self._index, self._tokenizer, self._prompt = index, tokenizer, prompt
        self._logprobs, self._limit = body.logprobs, body.new_tokens
        self._echo = prompt.text if body.echo else ""  # not written yet
        self._places = TokenPlaces(tokenizer, len(self._echo))
        self._written = 0  # characters
        self._waiting: deque[tuple[int, int, Measure]] = deque()  # tokens with where they begin

    def write(self, items: Iterable[Item]) -> Choice | None:
        """Return the next part of the text from these items; None if nothing is certain yet."""
        text, self._echo = self._echo, ""
        finish: Finish | None = None
        for item in items:
            if isinstance(item, PromptLogprobs):
                places = TokenPlaces(self._tokenizer, 0)
                pairs = zip(self._prompt.tokens, item.measures, strict=False)
                self._waiting += [(places.place(token), token, measure) for token, measure in pairs]
                continue
            finish = item.finish
            if self._limit:
                text += item.text
                self.generated += 1
                token = item.token
                if self._logprobs is not None:
                    measure = (token.logprob, token.likeliest)
                    self._waiting.append((self._places.place(token.token), token.token, measure))
        self._written += len(text)
        logprobs = None if self._logprobs is None else self._write_logprobs(finish)
        if not text and finish is None:
            return None
        reason = None if finish is None else "length" if finish == "length" else "stop"
        return Choice(index=self._index, text=text, logprobs=logprobs, finish_reason=reason)

    def _write_logprobs(self, finish: Finish | None) -> Logprobs:
        """Return the tokens whose text is written."""
        logprobs = Logprobs(top_logprobs=[] if self._logprobs else None)
        while self._waiting and (self._waiting[0][0] < self._written or finish == "end_of_text"):
            place, token, (logprob, likeliest) = self._waiting.popleft()
            logprobs.tokens.append(spell_token(token, self._tokenizer))
            logprobs.token_logprobs.append(logprob)
            logprobs.text_offset.append(place)
            if logprobs.top_logprobs is None:
                continue
            spelled: dict[str, float] = {}  # the likeliest, the best first, and the chosen one if it is not among them
            for other, value in (*likeliest, (token, logprob)):
                if value is not None:
                    spelled.setdefault(spell_token(other, self._tokenizer), value)
            logprobs.top_logprobs.append(spelled or None)
        return logprobs


def spell_token(token: int, tokenizer: Tokenizer) -> str:
    """Return a token's text; OpenAI's `bytes:\\xf0\\x9f` for a part of a character; `token_id:7` where it has none."""
    spelling = tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""
    if not spelling:
        return f"token_id:{token}"
    try:
        return spelling.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)


class ResponseWriter:
    """Writes the response to one request: as one document, or event by event."""

    def __init__(
        self, body: CompletionRequest, prompts: Sequence[TokenPrompt], model: str, tokenizer: Tokenizer
    ) -> None:
        self._prompts, self._model = prompts, model
        self._id, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._with_usage = bool(body.stream_options and body.stream_options.include_usage)
        owners = [prompt for prompt in prompts for _ in range(body.choices)]
        self._writers = [ChoiceWriter(index, body, prompt, tokenizer) for index, prompt in enumerate(owners)]

    def write(self, items: Sequence[Item]) -> bytes:
        """Return the response from all items of a request."""
        return self._dump(self._write_choices(items), self._count())

    def write_events(self, items: Sequence[Item]) -> bytes:
        """Return server-sent events of these items, one for each text that they add to."""
        return b"".join(frame_event(self._dump([choice], None)) for choice in self._write_choices(items))

    def write_end(self) -> bytes:
        """Return the last events of a stream."""
        usage = frame_event(self._dump([], self._count())) if self._with_usage else b""
        return usage + frame_event(b"[DONE]")

    def _write_choices(self, items: Sequence[Item]) -> list[Choice]:
        own: dict[int, list[Item]] = {}
        for item in items:
            own.setdefault(item.key, []).append(item)
        return [choice for index, some in sorted(own.items()) if (choice := self._writers[index].write(some))]

    def _dump(self, choices: list[Choice], usage: Usage | None) -> bytes:
        excluded = set() if usage or self._with_usage else {"usage"}
        response = CompletionResponse(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )
        return response.model_dump_json(exclude=excluded, ensure_ascii=True).encode()

    def _count(self) -> Usage:
        prompt = sum(len(prompt.read) for prompt in self._prompts)
        completion = sum(writer.generated for writer in self._writers)
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def frame_event(data: bytes) -> bytes:
    """Return a server-sent event of one line."""
    return b"data: " + data + b"\n\n"
