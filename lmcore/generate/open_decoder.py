"""The decoders by name, and one of them for a model."""

from lmcore.generate.decoder import Decoder
from lmcore.generate.tidar import TidarDecoder, TidarOneForwardDecoder
from lmcore.model.gpt import GPT
from lmcore.model.vocabulary import list_text_tokens, require_vocabulary
from lmcore.tokenizer.base import Tokenizer

MAX_BATCH = 64
CACHE_BYTES = 1 << 30

# The values of `sample.decoder`. A further decoder is a subclass of Decoder in a file of its own, and an entry here.
DECODERS: dict[str, type[Decoder]] = {
    "plain": Decoder,
    "tidar": TidarDecoder,
    "tidar-one-forward": TidarOneForwardDecoder,
}


def open_decoder(
    model: GPT,
    tokenizer: Tokenizer,
    *,
    batch: int = MAX_BATCH,
    longest: int | None = None,
    draft_tokens: int | None = None,
    kind: str = "plain",
    compile: bool = False,  # noqa: A002
) -> Decoder:
    """Return the decoder `kind` for sequences of at most `longest` tokens, prompt included.

    It decodes as many at once as `batch` and memory allow. Raises ArtifactError where the tokenizer is not the
    model's, ParameterError for TiDAR's decoders with a model without masks.
    """
    require_vocabulary(model, tokenizer)
    decoder = DECODERS[kind]
    capacity = min(model.params.context_length, longest or model.params.context_length)
    return decoder(
        model,
        batch=max(1, min(batch, CACHE_BYTES // decoder.count_row_bytes(model, capacity))),
        end_of_text=tokenizer.end_of_text,
        allowed=list_text_tokens(tokenizer),
        capacity=capacity,
        compile=compile,
        **({"draft_tokens": draft_tokens} if draft_tokens else {}),
    )
