"""The type of the weights while decoding, where reading them is most of the time."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcore.errors import ParameterError
from lmcore.model.gpt import GPT
from lmcore.model.linear import Linear

ROW_MULTIPLE = 32


class Int8Linear(nn.Module):
    """A linear layer with weights of -127 to 127 times a scale for each output (torch's kernel).

    The input is rounded to bfloat16, as the kernel needs it, and padded with zeros: it reads 32 numbers at once, also
    past the end of a row.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.padding = -weight.shape[1] % ROW_MULTIPLE
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        self.register_buffer("weight", F.pad(rounded, (0, self.padding)))
        self.register_buffer("scale", scale.to(torch.bfloat16))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., in) -> (..., out), in its own type."""
        rows = F.pad(x.flatten(0, -2).to(torch.bfloat16), (0, self.padding))
        product = torch._weight_int8pack_mm(rows, self.weight, self.scale).to(x.dtype).view(*x.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


def round_to_bfloat16(model: GPT) -> None:
    """All weights but those of the QK norms, which are computed in fp32 whatever the rest is."""
    model.to(torch.bfloat16)
    for name, module in model.named_modules():
        if name.endswith(("query_norm", "key_norm")):
            module.float()


def quantize_to_int8(model: GPT) -> None:
    """The linear layers, a tied head too; the embeddings stay. Raises ParameterError for a model not on a CPU."""
    device = model.token_embedding.weight.device.type
    if device != "cpu":
        raise ParameterError(f"sample.weights=int8 is for a CPU, the model is on {device}: set sample.weights=bfloat16")
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, Linear):
                setattr(module, name, Int8Linear(layer))


# The values of `sample.weights`, and the conversion of a model in fp32.
WEIGHT_TYPES: dict[str, Callable[[GPT], None]] = {
    "float32": lambda model: None,  # noqa: ARG005
    "bfloat16": round_to_bfloat16,
    "int8": quantize_to_int8,
}


def convert_weights(model: GPT, kind: str) -> GPT:
    """Convert `model` itself to a weight type, and return it; it can no longer be trained or saved."""
    WEIGHT_TYPES[kind](model)
    return model
