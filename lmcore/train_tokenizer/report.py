"""What a tokenizer makes of its text, as a page to read."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from lmcore.tokenizer.base import Tokenizer
from lmcore.train_tokenizer.counts import Tally, TokenCounts
from lmcore.train_tokenizer.words import find_costly_words

MOST_TYPES = 12
LONGEST_TOKENS = 15
LONGEST_RUNS = 8
COSTLY_WORDS = 20
UNUSED_EXAMPLES = 12
SHOWN_CHARACTERS = 40  # of one token
RUN = 8  # so many of one character are written as a number


def render_page(tokenizer: Tokenizer, counts: TokenCounts) -> str:
    """The vocabulary, bytes per token, the longest tokens and the words that cost the most, as Markdown."""
    sections = {
        "# Tokenizer": tabulate(["", ""], list_facts(tokenizer, counts)),
        "## Bytes per token": tabulate(
            ["file type", "texts:", "bytes:", "tokens:", "bytes per token:"], list_types(counts)
        ),
        "## Longest tokens": [
            *tabulate(["token", "bytes:", "id:", "occurrences:"], list_longest(tokenizer, counts)),
            "",
            f"Beside them are runs of one character, at the longest: {describe_runs(tokenizer)}.",
        ],
        "## Most costly words": [
            "The words with the most tokens beyond one in all places together. The space (␣) or sign before a word is "
            "part of it; where it is a token of its own, it is not counted.",
            "",
            *tabulate(["word", "pieces", "occurrences:", "tokens beyond one:"], list_costly(tokenizer, counts)),
        ],
    }
    return "\n".join(line for heading, lines in sections.items() for line in (heading, "", *lines, ""))


def list_facts(tokenizer: Tokenizer, counts: TokenCounts) -> Iterator[list[str]]:
    """The vocabulary and what was measured over all, by name."""
    lengths, total = tokenizer.byte_lengths, counts.total
    single, longer, special = int(np.sum(lengths == 1)), int(np.sum(lengths > 1)), len(tokenizer.special_tokens)
    gaps = tokenizer.vocab_size - single - longer - special
    yield ["kind", tokenizer.kind]
    yield [
        "entries",
        f"{tokenizer.vocab_size:,}: {single:,} of one byte, {longer:,} longer, {special:,} special"
        + (f", {gaps:,} that stand for nothing" if gaps else ""),
    ]
    listed = (f"{write_code(name)} {token:,}" for name, token in tokenizer.special_tokens.items())
    yield ["special tokens", ", ".join(listed)]
    yield ["fingerprint", write_code(tokenizer.fingerprint)]
    yield ["text", f"{total.texts:,} texts, {total.bytes:,} bytes: the training text, or a fair sample of it"]
    yield ["bytes per token", f"{total.bytes_per_token:.4f}, {total.tokens:,} tokens"]
    yield ["unused entries", describe_unused(tokenizer, counts, longer)]
    yield ["round trip", f"all {total.texts:,} texts, encoded and decoded again, are the same {total.bytes:,} bytes"]


def describe_unused(tokenizer: Tokenizer, counts: TokenCounts, longer: int) -> str:
    """How many of the entries longer than a byte never occur, and the first of them."""
    if not len(counts.unused):
        return f"none of {longer:,} longer than a byte"
    examples = [show_token(tokenizer.token_bytes(token)) for token in counts.unused[:UNUSED_EXAMPLES].tolist()]
    more = ", ..." if len(counts.unused) > len(examples) else ""
    share = 100 * len(counts.unused) / longer
    listed = ", ".join(map(write_code, examples)) + more
    return f"{len(counts.unused):,} of {longer:,} longer than a byte ({share:.2g} %): {listed}"


def list_types(counts: TokenCounts) -> Iterator[list[str]]:
    """A row for each type of file, and one for all."""
    for name, tally in group_types(counts.types, counts.total):
        suffix = write_code(name) if name.startswith(".") else name or "none"
        yield [suffix, f"{tally.texts:,}", f"{tally.bytes:,}", f"{tally.tokens:,}", f"{tally.bytes_per_token:.4f}"]


def group_types(types: dict[str, Tally], total: Tally) -> list[tuple[str, Tally]]:
    """The types of files, those with the most text first, the smallest together, and all where there are several."""
    ordered = sorted(types.items(), key=lambda item: (-item[1].bytes, item[0]))
    small = ordered[MOST_TYPES - 1 :] if len(ordered) > MOST_TYPES else []
    shown = ordered[: len(ordered) - len(small)]
    if small:
        others = Tally()
        for _, tally in small:
            others.add(tally.bytes, tally.tokens, tally.texts)
        shown.append((f"{len(small)} others", others))
    return [*shown, ("all", total)] if len(shown) > 1 else shown


def list_longest(tokenizer: Tokenizer, counts: TokenCounts) -> Iterator[list[str]]:
    """The entries with the most bytes, but for runs of one character, of which code has too many."""
    lengths = tokenizer.byte_lengths
    ordered = np.argsort(-lengths, kind="stable").tolist()
    longest = (token for token in ordered if len(set(tokenizer.token_bytes(token))) > 1 and lengths[token])
    for token in islice(longest, LONGEST_TOKENS):
        name = write_code(show_token(tokenizer.token_bytes(token)))
        yield [name, f"{lengths[token]:,}", f"{token:,}", f"{counts.used[token]:,}"]


def describe_runs(tokenizer: Tokenizer) -> str:
    """The longest entry of each byte that is repeated, the longest first."""
    longest: dict[bytes, int] = {}
    for token, length in enumerate(tokenizer.byte_lengths.tolist()):
        run = tokenizer.token_bytes(token)
        if length > 1 and run == run[:1] * length:
            longest[run[:1]] = max(length, longest.get(run[:1], 0))
    ordered = sorted(longest.items(), key=lambda item: (-item[1], item[0]))[:LONGEST_RUNS]
    return ", ".join(f"{write_code(show_token(byte))} × {length}" for byte, length in ordered) or "none"


def list_costly(tokenizer: Tokenizer, counts: TokenCounts) -> Iterator[list[str]]:
    """The words of the highest cost."""
    for costly in find_costly_words(tokenizer, counts.words, COSTLY_WORDS):
        pieces = " ".join(write_code(show_token(piece)) for piece in costly.pieces)
        yield [write_code(show_token(costly.word.encode())), pieces, f"{costly.count:,}", f"{costly.cost:,}"]


def tabulate(names: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A Markdown table; a name that ends with a colon stands over numbers."""
    rules = ["---:" if name.endswith(":") else "---" for name in names]
    return ["| " + " | ".join(row) + " |" for row in ([name.rstrip(":") for name in names], rules, *rows)]


def show_token(token: bytes) -> str:
    r"""A token in visible characters on one line, cut where it is long.

    >>> show_token(b" a\n"), show_token(b" " * 64)
    ('␣a\\n', '␣ × 64')
    """
    text = token.decode(errors="backslashreplace")
    if len(text) > RUN and len(set(text)) == 1:
        return f"{show_token(text[0].encode())} × {len(text)}"
    shown = "".join(
        char if char.isprintable() and char != " " else "␣" if char == " " else char.encode("unicode_escape").decode()
        for char in text[:SHOWN_CHARACTERS]
    )
    return shown + ("…" if len(text) > SHOWN_CHARACTERS else "")


def write_code(text: str) -> str:
    """A Markdown code span inside a table, its fence longer than any run of backticks in the text."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}".replace("|", "\\|")
