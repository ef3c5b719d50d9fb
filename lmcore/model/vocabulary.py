"""Which ids a model and its tokenizer have in common."""

from lmcore.errors import ArtifactError
from lmcore.model.gpt import GPT
from lmcore.tokenizer.base import Tokenizer


def require_vocabulary(model: GPT, tokenizer: Tokenizer) -> None:
    """Raise ArtifactError where the tokenizer is not the model's: it has more ids, or they stand for something else.

    A model from elsewhere does not say its end of text, and may be padded with ids that stand for nothing.
    """
    theirs = (tokenizer.vocab_size, tokenizer.end_of_text)
    is_padded = model.end_of_text is None and model.vocab_size >= tokenizer.vocab_size
    if (model.vocab_size, model.end_of_text) != theirs and not is_padded:
        raise ArtifactError(
            f"the model's vocabulary has {model.vocab_size} tokens, its tokenizer's {tokenizer.vocab_size}: "
            f"make both again (dvc repro --force train)"
        )


def list_text_tokens(tokenizer: Tokenizer) -> list[int]:
    """The ids that a text may consist of: those that stand for bytes, and end-of-text; no padding, no reserved ones."""
    return [*tokenizer.byte_lengths.nonzero()[0].tolist(), tokenizer.end_of_text]
