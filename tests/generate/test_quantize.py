"""Weights of fewer bits compute nearly the same."""

import pytest
import torch
from tiny import GPT2_MODEL, TINY_MODEL
from torch import nn

from lmcore.errors import ParameterError
from lmcore.generate.quantize import Int8Linear, convert_weights
from lmcore.model.gpt import GPT
from lmcore.model.linear import Linear
from lmcore.model.params import ModelParams


@pytest.mark.parametrize("rows", [(1,), (3, 1), (2, 7), (64,)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 40), (20, 7), (97, 41), (100, 64), (1, 8)])
def test_int8_is_the_product_with_rounded_weights(rows: tuple[int, ...], bias: bool, inputs: int, outputs: int) -> None:
    torch.manual_seed(1)
    linear = Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        linear.weight[3] = 0  # a row without a scale
    layer, x = Int8Linear(linear), torch.randn(*rows, inputs)
    scale = linear.weight.abs().amax(1, keepdim=True)
    assert int(layer.weight.abs().max()) == 127
    whole = layer.weight[:, :inputs]
    assert ((whole * scale / 127 - linear.weight).abs() <= scale / 127 / 2 * 1.001).all()
    rounded = whole.float() * layer.scale.float()[:, None]
    expected = x.bfloat16().float() @ rounded.T + (linear.bias if bias else 0)
    torch.testing.assert_close(layer(x), expected, rtol=0.01, atol=0.01)
    assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("params", [GPT2_MODEL, TINY_MODEL])
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_a_model_of_fewer_bits_says_nearly_the_same(params: ModelParams, kind: str) -> None:
    model, tokens = GPT(params, 50).eval(), torch.arange(16)[None]
    with torch.inference_mode():
        before = model(tokens)[0]
        after = convert_weights(model, kind)(tokens)[0].float()  # type: ignore[arg-type]
    assert 0 < (after - before).abs().max() < 0.05 * before.abs().max()
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Linear | Int8Linear)}
    assert kinds == ({Int8Linear} if kind == "int8" else {Linear})


def test_int8_is_for_a_cpu() -> None:
    with pytest.raises(ParameterError, match=r"sample.weights=int8 is for a CPU.*meta: set sample.weights=bfloat16"):
        convert_weights(GPT.outline(TINY_MODEL, 50), "int8")
