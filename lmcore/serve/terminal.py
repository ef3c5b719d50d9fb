"""`lmcore sample` and `lmcore chat`: texts on a terminal, piece by piece."""

import io
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

from lmcore.errors import ParameterError
from lmcore.generate.params import SampleParams
from lmcore.generate.samples import build_request, encode_prompt, number_samples
from lmcore.generate.text_stream import complete
from lmcore.params import parse_section
from lmcore.serve.open_model import open_model

HINT = (
    "type how a text begins; the model continues it, then you. Empty: it continues; /new: a new text; Ctrl-D: the end."
)


class Writer:
    """One model with its sampling parameters; it continues one text at a time."""

    def __init__(self, name: str, values: dict[str, Any], changes: dict[str, Any], *, compile: bool) -> None:  # noqa: A002
        """Open the model `name`, as in `find_model`; `changes` override the sample section of params.yaml's `values`.

        Raises as the sample stage does.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        section = values.get("sample")
        wanted = {**section, **given} if isinstance(section, dict) else section
        self.params = parse_section(SampleParams, "sample", wanted)
        self.decoder, self.tokenizer = open_model(
            name,
            values,
            self.params.weights,
            batch=1,
            draft_tokens=self.params.draft_tokens,
            kind=self.params.decoder,
            compile=compile,
        )
        self.seconds = 0.0

    def encode(self, prompt: str) -> list[int]:
        """Return the tokens of a prompt; warn if it is longer than the context."""
        return encode_prompt(prompt, self.tokenizer, self.decoder.context_length)

    def continue_text(self, prompt: str, tokens: list[int], number: int) -> Generator[str]:
        """Yield the `number`-th continuation of `prompt`, the same that the sample stage draws, piece by piece."""
        request = build_request(self.params, prompt, tokens, number)
        started = time.perf_counter()
        try:
            for piece in complete(self.decoder, self.tokenizer, [request]):
                yield piece.text
        finally:
            self.seconds += time.perf_counter() - started

    def report(self) -> str:
        """`600 tokens in 1.2 s (498 tokens/s), 1.31 per forward pass (1: 80%, 2: 9%, 3: 11%)`, of all texts."""
        stats, drafting = self.decoder.stats, ""
        if stats.drafted:
            shares = (f"{tokens}: {count / stats.forwards:.0%}" for tokens, count in sorted(stats.given.items()))
            drafting = f", {stats.tokens / stats.forwards:.2f} per forward pass ({', '.join(shares)})"
        rate = stats.tokens / max(self.seconds, 1e-9)
        return f"{stats.tokens} tokens in {self.seconds:.1f} s ({rate:.0f} tokens/s){drafting}"


def print_samples(writer: Writer) -> None:
    """Print every prompt's samples on standard output, and the speed on standard error."""
    accept_any_bytes()
    prompts = {prompt: writer.encode(prompt) for prompt in writer.params.prompts}
    for place, (prompt, number) in enumerate(number_samples(writer.params)):
        if place:
            show("\n----\n")
        show(prompt)
        for piece in writer.continue_text(prompt, prompts[prompt], number):
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
        with closing(writer.continue_text(text, writer.encode(text), turn)) as pieces:
            try:
                for piece in pieces:
                    text += piece
                    show(piece)
            except KeyboardInterrupt:  # ends this turn
                pass
        show("\n")
    if writer.decoder.stats.tokens:
        print(writer.report(), file=sys.stderr)


def show(text: str) -> None:
    """Write `text` at once, on a terminal without control characters."""
    if sys.stdout.isatty():
        text = "".join(one if one.isprintable() or one in "\n\t" else "\ufffd" for one in text)
    sys.stdout.write(text)
    sys.stdout.flush()


def read_prompts(prompts: Sequence[str] | None) -> list[str] | None:
    """Return the prompts of the command line, standard input for `-`; None without any."""
    if not prompts:
        return None
    if prompts.count("-") > 1:
        raise ParameterError("--prompt -: standard input can be read once")
    accept_any_bytes()
    return [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]


def accept_any_bytes() -> None:
    """Replace what cannot be decoded from standard input, or encoded for the terminal, by U+FFFD or `?`."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
