"""Open a model by name for decoding."""

from typing import Any

from lmcore.errors import ParameterError
from lmcore.generate.decoder import Decoder
from lmcore.generate.open_decoder import open_decoder
from lmcore.generate.quantize import WEIGHT_TYPES, convert_weights
from lmcore.hardware.params import HardwareParams
from lmcore.hardware.resolve import choose_device, explain_uncompilable
from lmcore.hub import find_model
from lmcore.model.save_load import load_model
from lmcore.params import parse_section
from lmcore.tokenizer.base import Tokenizer
from lmcore.tokenizer.load import load_tokenizer


def open_model(
    name: str,
    values: dict[str, Any],
    weights: str,
    *,
    batch: int,
    draft_tokens: int | None,
    kind: str = "plain",
    compile: bool,  # noqa: A002
) -> tuple[Decoder, Tokenizer]:
    """Return the decoder and the tokenizer of a model, its name as in `find_model`, on the device of `values`.

    Raises ParameterError and ArtifactError for a device, a model or a tokenizer that cannot be used.
    """
    if weights not in WEIGHT_TYPES:
        raise ParameterError(f"--weights {weights}: must be one of {', '.join(WEIGHT_TYPES)}")
    device = choose_device(parse_section(HardwareParams, "hardware", values.get("hardware")), values)
    if compile and (obstacle := explain_uncompilable(device)):
        raise ParameterError(f"--compile: {obstacle}; leave it out")
    folder = find_model(name, None).folder
    model, tokenizer = convert_weights(load_model(folder, device), weights), load_tokenizer(folder)
    decoder = open_decoder(model, tokenizer, batch=batch, draft_tokens=draft_tokens, kind=kind, compile=compile)
    return decoder, tokenizer
