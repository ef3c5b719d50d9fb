"""From tokens to text as it comes: whole characters, and stop strings that are never shown."""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lmcore.generate.decoder import Decoder, Request, Token
from lmcore.tokenizer.base import Tokenizer

Finish = Literal["length", "end_of_text", "stop"]


@dataclass(frozen=True)
class Piece:
    """What the text `key` goes on with: some characters, or none yet, by the token at hand; `finish` with the last."""

    key: int
    text: str
    token: Token
    finish: Finish | None


@dataclass
class Completion:
    """What a text goes on with, when all of it is there; half a character at its end reads U+FFFD.

    `tokens` are the new ones, without the end-of-text that ended it; with stop strings they go on to the one that made
    the string whole. `logprob` is the sum of what was measured of all, in nats by the model itself.
    """

    text: str
    tokens: list[int]
    finish: Finish
    logprob: float = 0.0


class TextStream:
    """The text of tokens as far as it is certain.

    Half a character waits for the rest, and so does what may become one of the `stop` strings; at a whole one the text
    ends.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """The text that is certain by this token."""
        return self._release(self._decoder.decode(self._tokenizer.token_bytes(token)), is_end=False)

    def close(self) -> str:
        """What was held back; half a character at the end reads U+FFFD."""
        return self._release(self._decoder.decode(b"", final=True), is_end=True)

    def _release(self, new: str, *, is_end: bool) -> str:
        text = self._held + new
        found = [place for place in map(text.find, self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if is_end else max((self._measure_beginning(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    @staticmethod
    def _measure_beginning(text: str, stop: str) -> int:
        """The length of the longest end of `text` that `stop` begins with."""
        longest = min(len(stop) - 1, len(text))
        return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)


class OpenTexts:
    """The texts that a decoder works on, as text: what comes token by token goes out piece by piece."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer) -> None:
        self._decoder, self._tokenizer = decoder, tokenizer
        self._streams: dict[int, TextStream] = {}

    def open(self, key: int, stop: Sequence[str]) -> None:
        """A text `key` that ends before any of `stop`; the decoder is given it by whoever calls this."""
        self._streams[key] = TextStream(self._tokenizer, stop)

    def discard(self, key: int) -> None:
        """Give up the text `key`, in the decoder too, if it is still open."""
        if self._streams.pop(key, None):
            self._decoder.cancel(key)

    def read(self, token: Token) -> Piece | None:
        """What a text goes on with by its next token; None for one that comes after its end, of the same step."""
        stream = self._streams.get(token.key)
        if stream is None:
            return None
        at_end = token.token == self._decoder.end_of_text
        text = "" if at_end else stream.feed(token.token)
        if token.is_last and not stream.stopped:
            text += stream.close()
        finish: Finish | None = None
        if stream.stopped:
            finish = "stop"
        elif token.is_last:
            finish = "end_of_text" if at_end else "length"
        if finish:
            self.discard(token.key)
        return Piece(token.key, text, token, finish)


def complete(decoder: Decoder, tokenizer: Tokenizer, requests: Iterable[Request]) -> Iterator[Piece]:
    """The texts of all `requests`, piece by piece as they come; a request's place in the list is its pieces' `key`."""
    texts = OpenTexts(decoder, tokenizer)

    def open_texts() -> Iterator[Request]:
        for key, request in enumerate(requests):
            texts.open(key, request.stop)
            yield request

    for token in decoder.decode(open_texts()):
        if piece := texts.read(token):
            yield piece


def collect(pieces: Iterable[Piece], count: int) -> list[Completion]:
    """The `count` texts that `pieces` make up, in the order of their keys."""
    completions = [Completion("", [], "length") for _ in range(count)]
    for piece in pieces:
        completion = completions[piece.key]
        completion.text += piece.text
        completion.finish = piece.finish or completion.finish
        completion.logprob += piece.token.logprob or 0.0
        if piece.finish != "end_of_text":
            completion.tokens.append(piece.token.token)
    return completions
