"""Texts on a terminal, as they come: `lmcore sample` and `lmcore chat`."""

import io
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

from lmcore.errors import ParameterError
from lmcore.generate.decoder import Decoder
from lmcore.generate.params import SampleParams
from lmcore.generate.samples import build_request, encode_prompt, number_samples
from lmcore.generate.text_stream import complete
from lmcore.params import parse_section
from lmcore.serve.open_model import open_model
from lmcore.tokenizer.base import Tokenizer

HINT = "type how a text begins; the model goes on, then you. Empty: it goes on; /new: a new text; Ctrl-D: the end."


class Writer:
    """One model and its settings, which go on with one text at a time."""

    def __init__(self, name: str, values: dict[str, Any], changes: dict[str, Any], *, compile: bool) -> None:  # noqa: A002
        """`name` as `find_model` has it, `values` all of params.yaml, `changes` go over its sample section.

        Raises as the sample stage does.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        section = values.get("sample")
        wanted = {**section, **given} if isinstance(section, dict) else section
        self.params = parse_section(SampleParams, "sample", wanted)
        drafts, kind = self.params.draft_tokens, self.params.decoder
        self.decoder: Decoder
        self.tokenizer: Tokenizer
        self.decoder, self.tokenizer = open_model(
            name, values, self.params.weights, batch=1, draft_tokens=drafts, kind=kind, compile=compile
        )
        self.context_length = self.decoder.context_length
        self.seconds = 0.0

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a prompt; says if it is too long to be seen whole."""
        return encode_prompt(prompt, self.tokenizer, self.context_length)

    def go_on(self, prompt: str, tokens: list[int], number: int) -> Generator[str]:
        """The `number`-th continuation of `prompt`, the same one that the sample stage draws, piece by piece."""
        request = build_request(self.params, prompt, tokens, number)
        started = time.perf_counter()
        try:
            for piece in complete(self.decoder, self.tokenizer, [request]):
                yield piece.text
        finally:
            self.seconds += time.perf_counter() - started

    def report(self) -> str:
        """`600 tokens in 1.2 s (498 tokens/s), 1.31 per forward pass (1: 80%, 2: 9%, 3: 11%)`, of all that it wrote."""
        tally, drafting = self.decoder.tally, ""
        if tally.drafted:
            shares = (f"{tokens}: {count / tally.forwards:.0%}" for tokens, count in sorted(tally.given.items()))
            drafting = f", {tally.tokens / tally.forwards:.2f} per forward pass ({', '.join(shares)})"
        rate = tally.tokens / max(self.seconds, 1e-9)
        return f"{tally.tokens} tokens in {self.seconds:.1f} s ({rate:.0f} tokens/s){drafting}"


def print_samples(writer: Writer) -> None:
    """Every prompt's samples one after the other, on standard output; how fast it was, on standard error."""
    accept_any_bytes()
    prompts = {prompt: writer.encode(prompt) for prompt in writer.params.prompts}
    for place, (prompt, number) in enumerate(number_samples(writer.params)):
        if place:
            show("\n----\n")
        show(prompt)
        for piece in writer.go_on(prompt, prompts[prompt], number):
            show(piece)
        show("\n")
    print(writer.report(), file=sys.stderr)


def converse(writer: Writer, read: Callable[[str], str] = input) -> None:
    """Let a person and the model write one text in turns, until the person's input ends."""
    accept_any_bytes()
    print(HINT, file=sys.stderr)
    text, turn = "", 0
    while True:
        try:
            line = read("> ")
        except EOFError:
            break
        if line == "/new":
            text, turn = "", 0
            continue
        text, turn = text + line, turn + 1
        with closing(writer.go_on(text, writer.encode(text), turn)) as pieces:
            try:
                for piece in pieces:
                    text += piece
                    show(piece)
            except KeyboardInterrupt:  # enough of this one
                pass
        show("\n")
    if writer.decoder.tally.tokens:
        print(writer.report(), file=sys.stderr)


def show(text: str) -> None:
    """Write `text` at once; on a terminal without the characters that it would obey."""
    if sys.stdout.isatty():
        text = "".join(one if one.isprintable() or one in "\n\t" else "\ufffd" for one in text)
    sys.stdout.write(text)
    sys.stdout.flush()


def read_prompts(prompts: Sequence[str] | None) -> list[str] | None:
    """The prompts of the command line, standard input for `-`; None without any."""
    if not prompts:
        return None
    if prompts.count("-") > 1:
        raise ParameterError("--prompt -: standard input can be read once")
    accept_any_bytes()
    return [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]


def accept_any_bytes() -> None:
    """Let what is no text in standard input, or has no character in the terminal's encoding, be U+FFFD or `?`."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
