"""Train or load a tokenizer of any kind."""

from pathlib import Path

from lmcore.errors import ArtifactError
from lmcore.files import read_json
from lmcore.tokenizer.adopted import adopt_tokenizer, define_pair, find_pair
from lmcore.tokenizer.base import FILE_NAME, Tokenizer
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokenizer.byte import ByteTokenizer
from lmcore.tokenizer.char import CharTokenizer

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
        for kind in (ByteTokenizer, CharTokenizer, BpeTokenizer):
            if kind.has_written(definition):
                return kind(path.read_bytes())
        return adopt_tokenizer(path, definition)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({type(error).__name__}: {error}): {remedy}") from None
