"""Layers against their formulas in float64."""
import math

import pytest
import torch
from torch import nn

from benchmark_utils.hardware.device import autocast
from benchmark_utils.models.layers import (
    ACTIVATIONS,
    NATIVE_BFLOAT16,
    Linear,
    RMSNorm,
    _packed_linear,
)

CPU = torch.device("cpu")
native = pytest.mark.skipif(
    not NATIVE_BFLOAT16, reason="bfloat16 is emulated here"
)


def formula(x, layer, activation):
    y = x.double() @ layer.weight.double().T
    if layer.bias is not None:
        y = y + layer.bias.double()
    if activation == "none":
        return y
    if activation == "relu_squared":
        return torch.where(y > 0, y * y, 0.0)
    # Hendrycks & Gimpel, "Gaussian Error Linear Units" (2016).
    if activation == "gelu":
        return y / 2 * (1 + torch.erf(y / math.sqrt(2)))
    inner = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
    return y / 2 * (1 + inner.tanh())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [
    (torch.float32, 1e-6), (torch.bfloat16, 1e-2),
])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_linear_is_the_formula(
        activation, bias, dtype, tolerance, with_gradients):
    torch.manual_seed(0)
    layer = Linear(48, 80, bias, activation)
    x = torch.randn(2, 33, 48)
    with torch.set_grad_enabled(with_gradients), autocast(CPU, dtype):
        y = layer(x)
    assert y.dtype == dtype and y.requires_grad == with_gradients
    expected = formula(x, layer, activation)
    assert (y - expected).norm() < tolerance * expected.norm()


@native
@pytest.mark.parametrize("activation, value", [
    ("gelu", -0.00405), ("gelu_tanh", -0.00364),
])
def test_gelu_of_an_evaluation_is_the_one_asked_for(activation, value):
    """The two differ most, relatively, where they are nearly zero."""
    layer, x = Linear(64, 64, activation=activation), torch.randn(128, 64)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, -3.0)
    with torch.no_grad(), autocast(CPU, torch.bfloat16):
        assert layer(x).mean().item() == pytest.approx(value, rel=2e-2)


@native
def test_gelu_of_an_evaluation_is_not_of_a_rounded_product():
    layer, x = Linear(64, 64, activation="gelu_tanh"), torch.randn(128, 64)
    with torch.no_grad(), autocast(CPU, torch.bfloat16):
        product = nn.functional.linear(x, layer.weight, layer.bias)
        rounded_twice = nn.functional.gelu(product, approximate="tanh")
        assert not torch.equal(layer(x), rounded_twice)


@native
def test_an_evaluation_sees_the_weights_as_they_are_now():
    """Nothing is kept from one call to the next."""
    layer, x = Linear(64, 64), torch.randn(128, 64)
    with torch.no_grad(), autocast(CPU, torch.bfloat16):
        before = layer(x)
        # Behind autograd's back, as some optimizers do.
        layer.weight.data.neg_()
        layer.bias.data.neg_()
        torch.testing.assert_close(layer(x), -before)


@native
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [None, torch.randn(80)])
def test_the_compiler_is_told_the_truth_about_the_operation(activation, bias):
    x = torch.randn(2, 40, 48, dtype=torch.bfloat16)
    torch.library.opcheck(
        _packed_linear, (x, torch.randn(80, 48), bias, activation)
    )


@pytest.mark.parametrize("dtype, tolerance", [
    (torch.float32, 1e-6), (torch.bfloat16, 5e-3),
])
@pytest.mark.parametrize("gain", [False, True])
# Where eps is a third of the mean square, it can be seen.
@pytest.mark.parametrize("scale", [1.0, 2e-3])
def test_rms_norm_is_the_formula(dtype, tolerance, gain, scale):
    torch.manual_seed(0)
    eps = 1e-6
    norm = RMSNorm(48, eps, gain)
    if gain:
        nn.init.normal_(norm.weight)
    x = (scale * torch.randn(2, 33, 48)).to(dtype)
    y = norm(x)
    assert y.dtype == dtype
    square = x.double().square().mean(-1, keepdim=True)
    expected = x.double() / (square + eps).sqrt()
    if gain:
        expected = expected * norm.weight.double()
    assert (y - expected).norm() < tolerance * expected.norm()
