"""The head's loss, in chunks, against torch's of all logits in float64."""
import math

import pytest
import torch
import torch.nn.functional as F

from benchmark_utils.hardware.device import KINDS, autocast
from benchmark_utils.models import cross_entropy
from benchmark_utils.models.cross_entropy import (
    linear_cross_entropy,
    padded_columns,
    soft_cap,
)

CPU = torch.device("cpu")
ROWS, WIDTH, VOCAB_SIZE = 50, 24, 131


def problem(with_bias):
    """Logits of a spread at which a cap of 3 matters."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    targets = torch.randint(VOCAB_SIZE, (ROWS,), generator=generator)
    bias = draw(VOCAB_SIZE) if with_bias else None
    return draw(ROWS, WIDTH), draw(VOCAB_SIZE, WIDTH) / 2, bias, targets


def in_dtype(tensors, dtype):
    return [
        x if x is None else x.to(dtype, copy=True).requires_grad_()
        for x in tensors
    ]


def plain_loss(hidden, weight, bias, targets, cap):
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    if cap:
        logits = cap * logits / (logits**2 + cap**2).sqrt()
    return F.cross_entropy(logits, targets)


@pytest.mark.parametrize("cap", [0.0, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("gradient_scale", [1.0, float(ROWS)])
@pytest.mark.parametrize("dtype, autocast_dtype, tolerance", [
    (torch.float64, torch.float32, 1e-13),
    (torch.float32, torch.float32, 1e-5),
    (torch.float32, torch.bfloat16, 2e-2),
])
@pytest.mark.parametrize("chunk_rows", [1024, 7])
def test_loss_and_gradients_are_those_of_all_logits(
        monkeypatch, cap, with_bias, gradient_scale, dtype, autocast_dtype,
        tolerance, chunk_rows):
    kind = KINDS["cpu"]._replace(chunk_rows=chunk_rows)
    monkeypatch.setitem(KINDS, "cpu", kind)
    *tensors, targets = problem(with_bias)
    hidden, weight, bias = in_dtype(tensors, dtype)
    with autocast(CPU, autocast_dtype):
        loss = linear_cross_entropy(
            hidden, weight, targets, bias, cap, gradient_scale
        )
    assert loss.dtype == dtype
    # As a training loop does, that averages over micro-batches.
    (loss / 3).backward()

    exact = in_dtype(tensors, torch.float64)
    expected = plain_loss(*exact, targets, cap)
    # The sum's gradient is that of the mean, times the rows.
    (expected * gradient_scale / 3).backward()
    assert abs(loss.item() - expected.item()) < tolerance
    for x, y in zip([hidden, weight, bias], exact, strict=True):
        if x is not None:
            error = (x.grad - y.grad).norm() / y.grad.norm()
            assert x.grad.dtype == dtype and error < tolerance


@pytest.mark.parametrize("cap", [0.0, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padded_columns_change_no_loss(monkeypatch, cap, with_bias, dtype):
    hidden, weight, bias, targets = problem(with_bias)
    losses = []
    for padding in (0, 61):
        monkeypatch.setattr(
            cross_entropy, "padded_columns", lambda *_, n=padding: n
        )
        with torch.no_grad(), autocast(CPU, dtype):
            losses.append(
                linear_cross_entropy(hidden, weight, targets, bias, cap)
            )
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)


def test_columns_are_padded_on_a_gpu_and_for_gradients():
    cuda = torch.device("cuda")
    assert padded_columns(50257, cuda, False) == 47
    assert padded_columns(50257, cuda, True) == 47
    assert padded_columns(50257, CPU, True) == 47
    assert padded_columns(50257, CPU, False) == 0
    assert padded_columns(50304, cuda, True) == 0


def test_the_gradient_in_bfloat16_is_rounded_once():
    """To the bit: probabilities minus one-hot targets, in float32, rounded."""
    hidden, weight, _, targets = problem(False)
    # A vocabulary that needs no padding, which may sum in another order.
    weight, targets = weight[:128].clone(), targets % 128
    hidden.requires_grad_()
    weight.requires_grad_()
    with autocast(CPU, torch.bfloat16):
        linear_cross_entropy(hidden, weight, targets).backward()
    with torch.no_grad():
        low_hidden, low_weight = hidden.bfloat16(), weight.bfloat16()
        logits = low_hidden @ low_weight.T
        grad = logits.log_softmax(-1, dtype=torch.float32).exp()
        grad.scatter_add_(1, targets[:, None], -torch.ones(ROWS, 1))
        grad = grad.bfloat16()
        scale = torch.tensor(1.0) / ROWS
        assert torch.equal(hidden.grad, (grad @ low_weight * scale).float())
        assert torch.equal(weight.grad, (grad.T @ low_hidden).float() * scale)


def test_soft_cap_has_the_published_values():
    """15 z / sqrt(z^2 + 225)."""
    z = torch.tensor([100.0, 15.0, 1.0, 0.0, -15.0], dtype=torch.float64)
    capped, shrinkage = soft_cap(z.requires_grad_(), 15.0)
    expected = torch.tensor([14.834, 10.607, 0.9978, 0.0, -10.607])
    torch.testing.assert_close(
        capped.detach().float(), expected, rtol=0, atol=5e-4
    )
    capped.sum().backward()
    torch.testing.assert_close(z.grad, shrinkage.detach()**3)
    numeric = (1 + 1e-6) * 15 / math.hypot(1 + 1e-6, 15) - 15 / math.hypot(
        1, 15)
    assert z.grad[2].item() == pytest.approx(numeric / 1e-6, rel=1e-5)
