"""The kinds of tokenizer by name, and a tokenizer of any kind from its folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lmcore.errors import ArtifactError
from lmcore.files import read_json
from lmcore.hub import find_model
from lmcore.tokenizer.adopted import adopt_tokenizer, define_pair, find_pair
from lmcore.tokenizer.base import FILE_NAME, Tokenizer, TokenizerKind
from lmcore.tokenizer.bpe import BPE_KIND
from lmcore.tokenizer.byte import BYTE_KIND
from lmcore.tokenizer.char import CHAR_KIND
from lmcore.tokenizer.pretrained import PUBLISHED_VOCABULARIES, fetch_pretrained, list_pretrained

REMEDY = "run the train_tokenizer stage (dvc repro train_tokenizer), or fetch it (dvc pull)"


def load_tokenizer(folder: Path, remedy: str = REMEDY) -> Tokenizer:
    """The tokenizer in `folder`, ours or another's.

    Raises ArtifactError for an unsuitable file, and with `remedy` for a missing or damaged one.
    """
    path = folder / FILE_NAME
    pair = None if path.exists() else find_pair(folder)
    try:
        if pair is not None:
            path = pair[0]
            return adopt_tokenizer(path, define_pair(read_json(path, remedy), pair[1].read_text(encoding="utf-8")))
        definition = read_json(path, remedy)
        for kind in KINDS.values():
            if kind.tokenizer is not None and kind.tokenizer.has_written(definition):
                return kind.tokenizer(path.read_bytes())
        return adopt_tokenizer(path, definition)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({type(error).__name__}: {error}): {remedy}") from None


def load_named(name: str) -> Tokenizer:
    """The tokenizer of the folder or repository that `train_tokenizer.name` is.

    Raises ArtifactError as `load_tokenizer` does, and as `find_model` does.
    """
    place = find_model(name, "train_tokenizer.name", weights=False)
    files = f"{FILE_NAME}, vocab.json and merges.txt, or encoder.json and vocab.bpe, each whole"
    return load_tokenizer(place.folder, f"train_tokenizer.name={name} must be a place with {files}")


def is_place(name: str | None) -> bool:
    """Return True if a tokenizer is named by its place, as models/gpt or openai-community/gpt2, not by itself."""
    return name is not None and "/" in name


def check_pretrained(name: str | None, **_: object) -> None:
    """Raise ValueError unless `name` can be a place or is an encoding of tiktoken's."""
    if not is_place(name) and name not in list_pretrained():
        raise ValueError(
            f"train_tokenizer.name={name}: must be one of {', '.join(list_pretrained())}, the folder of a "
            f"model or tokenizer (with a / in it), or OWNER/NAME on the Hugging Face hub, for kind pretrained"
        )


def take_pretrained(_: Iterable[list[str]], special_tokens: Sequence[str], name: str) -> Tokenizer:
    """Return the tokenizer of this name, with the special tokens that it lacks."""
    return (load_named(name) if is_place(name) else fetch_pretrained(name)).reserve(special_tokens)


def expect_pretrained(special_tokens: Sequence[str], name: str) -> int:
    """Return the entries of the tokenizer, which need not be fetched where its size is known."""
    if published := PUBLISHED_VOCABULARIES.get(name):
        return published + len(special_tokens)
    return load_named(name).reserve(special_tokens).vocab_size


KINDS = {
    "bpe": BPE_KIND,
    "char": CHAR_KIND,
    "byte": BYTE_KIND,
    "pretrained": TokenizerKind(
        reads=("name",), check=check_pretrained, train=take_pretrained, expect=expect_pretrained
    ),
}
