"""Two tokenizers on the same text: how many tokens, which texts and words are shorter in which, how fast."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lmcore.errors import ArtifactError, DataError
from lmcore.prepare.documents import Document, NamedText, Rejection, batch, file_type, iterate_named_texts
from lmcore.prepare.raw_files import Layout, RawFile
from lmcore.prepare.readers import read_file
from lmcore.tokenizer.adopted import ForeignTokenizer, read_foreign
from lmcore.tokenizer.base import FILE_NAME, Tokenizer
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokenizer.pretrained import fetch_pretrained, list_pretrained
from lmcore.train_tokenizer.counts import Tally
from lmcore.train_tokenizer.report import group_types, show_token
from lmcore.train_tokenizer.words import WordCounter

COMPARED_WORDS = 20_000  # those with the most bytes in all places
SHOWN_WORDS = 6  # for which the first is shorter, and as many for which the second is
NAME_CHARACTERS = 32

# Tokens that the first side saves at a word in all places, the word, how often it occurs, the pieces of both.
Cut = tuple[int, str, int, str, str]


@dataclass
class Side:
    """One tokenizer and what it made of the text."""

    name: str
    tokenizer: Tokenizer | ForeignTokenizer
    total: Tally = field(default_factory=Tally)
    types: dict[str, Tally] = field(default_factory=dict)
    shorter: int = 0  # texts
    lost: list[str] = field(default_factory=list)  # names of texts that come back as others
    seconds: float = 0.0

    def take(self, texts: list[NamedText]) -> list[int]:
        """Encode the texts, on one core, and count; the number of tokens of each."""
        started = time.perf_counter()
        encoded = self.tokenizer.encode_batch([text for _, text in texts], 1)
        self.seconds += time.perf_counter() - started
        for (name, text), ids in zip(texts, encoded, strict=True):
            size = len(text.encode())
            self.total.add(size, len(ids))
            self.types.setdefault(file_type(name), Tally()).add(size, len(ids))
            if self.tokenizer.decode(ids.tolist()) != text:
                self.lost.append(name)
        return [len(ids) for ids in encoded]


def find_tokenizer(name: str) -> Tokenizer | ForeignTokenizer:
    """The tokenizer in a folder, ours or Hugging Face's, or tiktoken's of this name. Raises ArtifactError."""
    if not Path(name).is_dir():
        if name in list_pretrained():
            return fetch_pretrained(name)
        raise ArtifactError(
            f"{name}: is neither a folder with a {FILE_NAME} nor a name of tiktoken's ({', '.join(list_pretrained())})"
        )
    try:
        return load_tokenizer(Path(name))
    except ArtifactError:  # it need not be one that lmcore could train with
        foreign = read_foreign(Path(name) / FILE_NAME)
        if foreign is None:
            raise
        return foreign


def read_texts(path: Path, left_out: list[Rejection]) -> Iterator[list[NamedText]]:
    """The documents of a prepared split, of a text file or of all files in a folder; `left_out` gathers the others.

    Raises DataError where there is no such file or folder.
    """
    if path.is_dir() and any(path.glob("part-*.parquet")):
        yield from iterate_named_texts(path)
        return
    if not path.exists():
        raise DataError(
            f"{path} does not exist: run the prepare stage (dvc repro prepare), or name a file or a folder (--text)"
        )
    root, names = (path, sorted(path.rglob("*"))) if path.is_dir() else (path.parent, [path])
    named = [(file, file.relative_to(root)) for file in names if file.is_file()]
    files = (
        RawFile(file, name.as_posix(), Layout(), file.stat().st_size)
        for file, name in named
        if file == path or not any(part.startswith(".") for part in name.parts)
    )
    for items in batch(item for file in files for item in read_file(file)):
        left_out += (item for item in items if isinstance(item, Rejection))
        yield [(item.id, item.text) for item in items if isinstance(item, Document)]


def compare_tokenizers(names: tuple[str, str], path: Path) -> Iterator[str]:
    """The lines of the comparison on the text in `path`. Raises ArtifactError and DataError, before the first line."""
    first, second = (Side(shorten(name), find_tokenizer(name)) for name in names)
    words, left_out = WordCounter(), list[Rejection]()
    for texts in read_texts(path, left_out):
        for one, other in zip(first.take(texts), second.take(texts), strict=True):
            first.shorter += one < other
            second.shorter += other < one
        for _, text in texts:
            words.add(text)
    if not first.total.bytes:
        raise DataError(f"{path} holds no text to compare on")
    yield f"{path}: texts: {first.total.texts:,}, bytes: {first.total.bytes:,}"
    if left_out:
        yield f"left out: {len(left_out):,}, which are no text, as {left_out[0].id} ({left_out[0].reason})"
    yield ""
    yield from align(list_figures(first, second))
    yield from (f"{side.name} changes {side.lost[0]}" for side in (first, second) if side.lost)
    cuts = list(cut_words(first, second, words))
    for side, sign in ((first, 1), (second, -1)):
        yield ""
        yield from describe_words(side, [(sign * cut[0], *cut[1:]) for cut in cuts])


def list_figures(first: Side, second: Side) -> Iterator[list[str]]:
    """A row for each figure, a column for each side."""
    sides, megabytes, texts = (first, second), first.total.bytes / 1e6, first.total.texts
    types = zip(*(group_types(side.types, side.total) for side in sides), strict=True)
    yield ["", *(side.name for side in sides)]
    yield ["vocabulary", *(f"{side.tokenizer.vocab_size:,}" for side in sides)]
    yield ["tokens", *(f"{side.total.tokens:,}" for side in sides)]
    for (name, one), (_, other) in types:
        yield [f"bytes per token, {name or 'no suffix'}", *(f"{tally.bytes_per_token:.4f}" for tally in (one, other))]
    yield ["texts with fewer tokens", *(f"{100 * side.shorter / texts:.1f} %" for side in sides)]
    yield ["texts that come back", *(f"{texts - len(side.lost):,} of {texts:,}" for side in sides)]
    yield ["MB/s, one core", *(f"{megabytes / side.seconds:.3g}" for side in sides)]


def cut_words(first: Side, second: Side, words: WordCounter) -> Iterator[Cut]:
    """What both make of each word."""
    for word, count, _ in words.by_bytes(COMPARED_WORDS):
        one, other = (
            [show_token(tokenizer.token_bytes(token)) for token in tokenizer.encode(word)]
            for tokenizer in (first.tokenizer, second.tokenizer)
        )
        yield count * (len(other) - len(one)), word, count, " ".join(one), " ".join(other)


def describe_words(side: Side, cuts: list[Cut]) -> Iterator[str]:
    """The words that the side cuts into fewer pieces, those first that save the most tokens in all."""
    saving = sorted((cut for cut in cuts if cut[0] > 0), key=lambda cut: (-cut[0], cut[1]))[:SHOWN_WORDS]
    if not saving:
        yield f"{side.name} has fewer tokens for no word"
        return
    yield f"{side.name} has fewer tokens for"
    yield from align(
        ["  " + show_token(word.encode()), f"{count:,} times", f"{saved:,} fewer", f"  {one}  |  {other}"]
        for saved, word, count, one, other in saving
    )


def align(rows: Iterable[list[str]]) -> Iterator[str]:
    """The rows as columns: names on the left, numbers on the right, and what is in a fourth column as it is."""
    rows = list(rows)
    label, *widths = (max(len(row[column]) for row in rows) for column in range(3))
    for name, *numbers in rows:
        shown = [f"{number:>{width}}" for number, width in zip(numbers, widths, strict=False)]
        yield "  ".join([f"{name:{label}}", *shown, *numbers[2:]]).rstrip()


def shorten(name: str) -> str:
    """A path's end, for the head of a column."""
    return name if len(name) <= NAME_CHARACTERS else f"…{name[1 - NAME_CHARACTERS :]}"
