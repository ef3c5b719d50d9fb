"""Open a model by name for decoding."""

from typing import Any

from lmcore.errors import ParameterError
from lmcore.generate.decoder import Decoder
from lmcore.generate.params import DecoderKind
from lmcore.generate.quantize import Weights, convert_weights
from lmcore.generate.samples import open_decoder
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
    weights: Weights,
    *,
    batch: int,
    draft_tokens: int | None,
    kind: DecoderKind = "plain",
    compile: bool,  # noqa: A002
) -> tuple[Decoder, Tokenizer]:
    """The engine and the tokenizer of a model, `name` as `find_model` has it, on the device of params.yaml's `values`.

    Raises ParameterError and ArtifactError where one of them cannot be had.
    """
    device = choose_device(parse_section(HardwareParams, "hardware", values.get("hardware")), values)
    if compile and (obstacle := explain_uncompilable(device)):
        raise ParameterError(f"--compile: {obstacle}; leave it out")
    folder = find_model(name, None).folder
    model, tokenizer = convert_weights(load_model(folder, device), weights), load_tokenizer(folder)
    decoder = open_decoder(model, tokenizer, batch=batch, draft_tokens=draft_tokens, kind=kind, compile=compile)
    return decoder, tokenizer
