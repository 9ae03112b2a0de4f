"""A layer's product without gradients against its formula in float64."""
import math

import pytest
import torch
from torch import nn

from benchmark_utils.device import autocast
from benchmark_utils.models.layers import (
    NATIVE_BFLOAT16, _packed_linear, linear
)

CPU = torch.device("cpu")
native = pytest.mark.skipif(
    not NATIVE_BFLOAT16, reason="bfloat16 is emulated here"
)


def formula(x, layer, gelu):
    y = x.double() @ layer.weight.double().T + layer.bias.double()
    if not gelu:
        return y
    # Hendrycks & Gimpel, "Gaussian Error Linear Units" (2016).
    inner = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
    return y / 2 * (1 + inner.tanh())


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [
    (torch.float32, 1e-6), (torch.bfloat16, 1e-2),
])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_equals_the_formula(gelu, dtype, tolerance, with_gradients):
    torch.manual_seed(0)
    layer = nn.Linear(48, 80)
    x = torch.randn(2, 33, 48)
    with torch.set_grad_enabled(with_gradients), autocast(CPU, dtype):
        y = linear(x, layer, gelu)
    assert y.dtype == dtype and y.requires_grad == with_gradients
    expected = formula(x, layer, gelu)
    assert (y - expected).norm() < tolerance * expected.norm()


@native
def test_is_the_tanh_approximation_without_rounding_before_it():
    """At -3, tanh GELU is -0.00364, the exact one -0.00405."""
    layer, x = nn.Linear(64, 64), torch.randn(128, 64)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, -3.0)
    with torch.no_grad(), autocast(CPU, torch.bfloat16):
        y = linear(x, layer, gelu=True)
        expected = formula(x, layer, gelu=True)
        torch.testing.assert_close(y.double(), expected, rtol=2e-2, atol=0)

        nn.init.normal_(layer.weight)
        y, product = linear(x, layer, gelu=True), linear(x, layer)
        rounded_twice = nn.functional.gelu(product, approximate="tanh")
        assert not torch.equal(y, rounded_twice)


@native
def test_sees_the_weights_as_they_are_now():
    """Nothing is kept from one call to the next."""
    layer, x = nn.Linear(64, 64), torch.randn(128, 64)
    with torch.no_grad(), autocast(CPU, torch.bfloat16):
        before = linear(x, layer)
        # Behind autograd's back, as some optimizers do.
        layer.weight.data.neg_()
        layer.bias.data.neg_()
        torch.testing.assert_close(linear(x, layer), -before)


@native
@pytest.mark.parametrize("gelu", [False, True])
def test_the_compiler_is_told_the_truth_about_the_operation(gelu):
    x = torch.randn(2, 40, 48, dtype=torch.bfloat16)
    torch.library.opcheck(
        _packed_linear, (x, torch.randn(80, 48), torch.randn(80), gelu)
    )
