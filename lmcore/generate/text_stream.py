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
    """The characters that a token adds to the text `key`, possibly none yet; `finish` with the last one."""

    key: int
    text: str
    token: Token
    finish: Finish | None


@dataclass
class Completion:
    """A whole continuation; half a character at its end reads U+FFFD.

    `tokens` are the new ones, without the end-of-text that ended it; a stop string's tokens are among them. `logprob`
    is the sum of the log-probabilities of all, in nats by the model itself.
    """

    text: str
    tokens: list[int]
    finish: Finish
    logprob: float = 0.0


class TextStream:
    """Incremental decoding of tokens to text.

    Half a character waits for the rest, and so does what may become one of the `stop` strings; at a whole one the text
    ends.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """Return the text that this token completes."""
        return self._release(self._decoder.decode(self._tokenizer.token_bytes(token)), is_end=False)

    def close(self) -> str:
        """Return the text that was held back; half a character at the end reads U+FFFD."""
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
        """Return the length of the longest end of `text` that `stop` begins with."""
        longest = min(len(stop) - 1, len(text))
        return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)


class OpenTexts:
    """The texts of a decoder's requests: tokens in, pieces of text out."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer) -> None:
        self._decoder, self._tokenizer = decoder, tokenizer
        self._streams: dict[int, TextStream] = {}

    def open(self, key: int, stop: Sequence[str]) -> None:
        """Begin a text `key` that ends before any of `stop`; the caller gives its request to the decoder."""
        self._streams[key] = TextStream(self._tokenizer, stop)

    def discard(self, key: int) -> None:
        """End the text `key`, in the decoder too, if it is still open."""
        if self._streams.pop(key, None):
            self._decoder.cancel(key)

    def read(self, token: Token) -> Piece | None:
        """Return the piece that a token adds to its text; None for a token of the same step after the text's end."""
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


def complete(decoder: Decoder, tokenizer: Tokenizer, requests: Sequence[Request]) -> Iterator[Piece]:
    """Yield the texts of all `requests`, piece by piece as they come; a request's index is its pieces' `key`."""
    texts = OpenTexts(decoder, tokenizer)
    for key, request in enumerate(requests):
        texts.open(key, request.stop)
    for token in decoder.decode(requests):
        if piece := texts.read(token):
            yield piece


def collect(pieces: Iterable[Piece], count: int) -> list[Completion]:
    """Return the `count` texts that `pieces` make up, in the order of their keys."""
    completions = [Completion("", [], "length") for _ in range(count)]
    for piece in pieces:
        completion = completions[piece.key]
        completion.text += piece.text
        completion.finish = piece.finish or completion.finish
        completion.logprob += piece.token.logprob or 0.0
        if piece.finish != "end_of_text":
            completion.tokens.append(piece.token.token)
    return completions
