"""Export to one GGUF file for llama.cpp, which is read again and compared before it appears.

After llama.cpp's own convert_hf_to_gguf.py: names of tensors from the gguf package, keys of the architectures.
"""

import math
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmcore.errors import ArtifactError, LmcoreError
from lmcore.export.llama_cpp_tokenizer import add_tokenizer
from lmcore.files import sync
from lmcore.model.gpt import GPT
from lmcore.model.hf_architecture import Architecture
from lmcore.model.hf_mapping import named_weights, turn
from lmcore.model.params import ModelParams
from lmcore.tokenizer.base import Tokenizer

PART_NUMBERS = 1 << 18


class GgufType(NamedTuple):
    """A type of the numbers of a matrix, with its number in llama.cpp's LLAMA_FTYPE.

    Rounding changes a number by at most `rounding` of the matrix's largest one plus `smallest`, the least that the type
    can represent. A row must be a multiple of `block` long.
    """

    file_type: int
    rounding: float
    smallest: float
    block: int = 1


# The values of `export.gguf`. f16 has eleven bits; q8_0 has 127 steps, whose size, in f16, is rounded too.
GGUF_TYPES = {
    "f32": GgufType(0, 0.0, 0.0),
    "f16": GgufType(1, 2.0**-11, 2.0**-24),
    "q8_0": GgufType(7, 0.51 / 127 + 2.0**-11, 127 * 2.0**-24, block=32),
}


class Piece(NamedTuple):
    """A tensor of the file: its name, the model's weight, and the name of its type in GGUF_TYPES.

    With a `head_width` its rows are written in the order of llama.cpp's `llama`.
    """

    name: str
    weight: Tensor
    type: str
    head_width: int | None

    @property
    def numbers(self) -> NDArray[np.float32]:
        """The numbers in llama.cpp's order of rows."""
        rows = self.weight if self.head_width is None else interleave(self.weight, self.head_width)
        return np.ascontiguousarray(rows.numpy())


def import_gguf() -> ModuleType:
    """Return the optional library."""
    try:
        import gguf
    except ImportError:
        raise LmcoreError("GGUF files need the gguf library: pip install -e '.[gguf]'") from None
    library: ModuleType = gguf
    return library


def name_file(name: str) -> str:
    """Return the file's name for a model's: `My model/2` -> `My-model-2.gguf`."""
    return (re.sub(r"[^\w.]+", "-", name).strip("-.") or "model") + ".gguf"


def write_gguf(
    model: GPT, architecture: Architecture, tokenizer: Tokenizer, numbers: str, name: str, path: Path
) -> dict[str, Any]:
    """Write `path`, one tensor after the other, read it again, and return the metrics.

    The same model gives the same bytes. Matrices are written as `numbers`, those as f16 whose rows are no multiple of
    its block long; norms, biases and learned positions in fp32, as llama.cpp needs them. Raises ParameterError for a
    tokenizer that llama.cpp lacks, ArtifactError where the file does not hold the model's weights, LmcoreError without
    gguf.
    """
    gguf = import_gguf()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_file_type(GGUF_TYPES[numbers].file_type)
    if GGUF_TYPES[numbers].block > 1:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_shape(writer, model.params, architecture)
    writer.add_vocab_size(model.vocab_size)
    add_tokenizer(writer, tokenizer)
    pieces = list(list_pieces(gguf, model, architecture, numbers))
    for piece in pieces:
        kind = gguf.GGMLQuantizationType[piece.type.upper()]
        shape = gguf.quant_shape_to_byte_shape(tuple(piece.weight.shape), kind)
        writer.add_tensor_info(piece.name, shape, np.dtype(np.uint8), math.prod(shape), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for piece in pieces:
        kind, data = gguf.GGMLQuantizationType[piece.type.upper()], piece.numbers
        if piece.type != "f32":
            data = np.concatenate([gguf.quantize(part, kind) for part in cut(data)])
        writer.write_tensor_data(data)
    writer.close()
    sync(path)
    return {"gguf_bytes": path.stat().st_size, "gguf_max_abs_weight_difference": compare_weights(gguf, pieces, path)}


def add_shape(writer: Any, params: ModelParams, architecture: Architecture) -> None:
    """Add the keys from which llama.cpp builds the network."""
    writer.add_context_length(params.context_length)
    writer.add_embedding_length(params.d_model)
    writer.add_block_count(params.n_layers)
    writer.add_feed_forward_length(params.ff_width)
    writer.add_head_count(params.n_heads)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(params.epsilon("layernorm"))
        return
    writer.add_head_count_kv(params.kv_heads)
    writer.add_key_length(params.head_width)
    writer.add_value_length(params.head_width)
    writer.add_rope_dimension_count(params.head_width)
    writer.add_rope_freq_base(params.rope_base)
    writer.add_layer_norm_rms_eps(params.epsilon("rmsnorm"))


def list_pieces(gguf: ModuleType, model: GPT, architecture: Architecture, numbers: str) -> Iterator[Piece]:
    """Yield the tensors with llama.cpp's names and order of rows; views of the weights where that is possible."""
    arch = {"gpt2": gguf.MODEL_ARCH.GPT2, "llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}[architecture]
    names = gguf.get_tensor_name_map(arch, model.params.n_layers)
    for their, weight in named_weights(model, architecture).items():
        name = names.get_name(their, try_suffixes=(".weight", ".bias"))
        assert name, their
        rows = turn(their, weight.detach().cpu())
        is_turned = architecture == "llama" and re.search(r"\.[qk]_proj\.", their)
        yield Piece(name, rows, choose_type(name, rows, numbers), model.params.head_width if is_turned else None)


def interleave(rows: Tensor, width: int) -> Tensor:
    """Return queries' or keys' rows with the pairs (i, i + W/2) of each head side by side, as (2i, 2i + 1)."""
    heads: Tensor = rows.unflatten(0, (-1, 2, width // 2))
    return heads.transpose(1, 2).flatten(0, 2)


def choose_type(name: str, rows: Tensor, numbers: str) -> str:
    """Return the type that llama.cpp's converter would choose for a tensor."""
    if rows.dim() == 1 or name == "position_embd.weight":
        return "f32"
    return "f16" if rows.shape[1] % GGUF_TYPES[numbers].block else numbers


def cut(numbers: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return views of some rows each: gguf works on all that it is given at once, with several copies of it."""
    rows = max(1, PART_NUMBERS // (numbers.size // len(numbers)))
    return [numbers[start : start + rows] for start in range(0, len(numbers), rows)]


def compare_weights(gguf: ModuleType, pieces: list[Piece], path: Path) -> float:
    """Return the largest absolute difference between the weights and those of gguf's own reader, to three digits.

    Raises ArtifactError for other tensors, and for a difference that rounding does not explain.
    """
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if wrong := sorted(tensors.keys() ^ {piece.name for piece in pieces}):
        raise ArtifactError(f"{path.name}: gguf reads other tensors than were written ({', '.join(wrong[:3])})")
    largest = 0.0
    for piece in pieces:
        tensor, numbers, kind = tensors[piece.name], piece.numbers, GGUF_TYPES[piece.type]
        start, difference, most = 0, 0.0, 0.0
        for part in cut(numbers):
            read = gguf.dequantize(tensor.data[start : start + len(part)], tensor.tensor_type)
            difference = max(difference, float(np.abs(read.reshape(part.shape) - part).max()))
            start, most = start + len(part), max(most, float(np.abs(part).max()))
            reader.data.base.madvise(mmap.MADV_DONTNEED)  # else the whole file would be in memory beside the model
        allowed = kind.rounding * most + kind.smallest
        if not difference <= allowed:
            raise ArtifactError(
                f"{path.name}: {piece.name} read by gguf differs by {difference:.3g}, and rounding to {piece.type} "
                f"explains {allowed:.3g}: not exported; install the versions of requirements.lock"
            )
        largest = max(largest, difference)
    return float(f"{largest:.3g}")
