"""Causal attention against its formula in float64."""
import math

import pytest
import torch

from benchmark_utils.models.attention import _blockwise, causal_attention


def formula(queries, keys, values, scale):
    """softmax(scale Q K^T) V over the positions up to each."""
    length = queries.shape[-2]
    scores = scale * queries @ keys.mT
    past = torch.ones(length, length, dtype=torch.bool).tril()
    return scores.masked_fill(~past, -math.inf).softmax(-1) @ values


def error(tensor, expected):
    return ((tensor - expected).norm() / expected.norm()).item()


# In bfloat16, in one block of rows, in several, and with a rest.
@pytest.mark.parametrize("length", [1, 100, 256, 512, 700])
@pytest.mark.parametrize("dtype, tolerance", [
    (torch.float32, 1e-5), (torch.bfloat16, 1e-2),
])
@pytest.mark.parametrize("scale", [None, 0.12])
def test_equals_the_formula(length, dtype, tolerance, scale):
    generator = torch.Generator().manual_seed(length)
    # As the model passes them: views of one product.
    qkv = torch.randn(
        2, length, 3, 4, 48, generator=generator
    ).to(dtype).requires_grad_()
    averages = causal_attention(*qkv.permute(2, 0, 3, 1, 4), scale)
    assert averages.dtype == dtype
    weights = torch.randn(averages.shape, generator=generator).to(dtype)
    averages.backward(weights)

    exact = qkv.detach().double().requires_grad_()
    expected = formula(
        *exact.permute(2, 0, 3, 1, 4), scale or 1 / math.sqrt(48)
    )
    expected.backward(weights.double())
    assert error(averages, expected) < tolerance
    assert error(qkv.grad, exact.grad) < tolerance


@pytest.mark.slow
def test_the_compiler_is_told_the_truth_about_the_operation():
    inputs = torch.randn(3, 2, 300, 16, dtype=torch.bfloat16)
    torch.library.opcheck(
        _blockwise, tuple(x.clone().requires_grad_() for x in inputs)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_never_sees_the_future(dtype):
    queries, keys, values = torch.randn(3, 1, 2, 600, 16).to(dtype)
    before = causal_attention(queries, keys, values)
    for seen in (1, 255, 256, 257, 599):
        changed = [x.clone() for x in (keys, values)]
        for x in changed:
            x[..., seen:, :] = 1e4
        after = causal_attention(queries, *changed)
        torch.testing.assert_close(
            after[..., :seen, :], before[..., :seen, :], rtol=0, atol=0
        )
        assert not torch.equal(after[..., seen, :], before[..., seen, :])
