"""Cross-entropy of a language model's head, in chunks of its logits.

The logits of a vocabulary of 50,257 take 200 kB per token in float32, and
the usual loss keeps three to four copies of them. Here they exist for a
bounded number of tokens at a time, once, and their gradient is computed along
the way (as in Hsu et al., "Liger Kernel", 2024).
"""
import math

import torch
import torch.nn.functional as F

from benchmark_utils.hardware.device import KINDS, product_dtype

# With gradients, the logits get columns for no token, of probability
# zero, up to a multiple of this: the two products of the backward pass take up
# to a third longer with GPT-2's 50,257.
COLUMN_MULTIPLE = 64


def linear_cross_entropy(hidden, weight, targets, bias=None, logit_cap=0.0,
                         gradient_scale=1.0):
    """Mean cross-entropy of ``softmax(cap(hidden @ weight.T + bias))``.

    The matrix products are computed in the autocast dtype where autocast is
    on; soft cap, softmax, loss and the sums of the gradients of weight and
    bias in float32 (in float64 if that is the dtype of ``hidden``).

    Parameters
    ----------
    hidden : tensor [rows, width]
    weight : tensor [vocab_size, width]
    targets : int64 tensor [rows]
    bias : tensor [vocab_size] or None
    logit_cap : float
        Smooth bound of the logits (``soft_cap``); 0 is none.
    gradient_scale : float
        Factor of the gradient, but not of the loss. With the number of rows,
        the gradient is that of the sum.

    Returns
    -------
    loss : float32 scalar tensor, nats per row
    """
    return _LinearCrossEntropy.apply(
        hidden.to(product_dtype(hidden)), weight, targets, bias, logit_cap,
        gradient_scale, torch.is_grad_enabled(),
    )


def soft_cap(logits, cap):
    """Logits bounded smoothly to (-cap, cap): ``cap * z / sqrt(z^2 + cap^2)``
    (modded-nanogpt, ``train_gpt_simple.py``, 2026).

    Parameters
    ----------
    logits : floating tensor
    cap : float, above 0

    Returns
    -------
    capped, shrinkage : tensors of the same shape, in float32 at least
        The logits times ``shrinkage``, whose cube is the derivative.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    shrinkage = (logits / cap).square().add_(1).rsqrt_()
    return logits * shrinkage, shrinkage


def padded_columns(vocab_size, device, with_gradients):
    """Number of columns of logits without a token; they follow those of
    the vocabulary."""
    multiple = COLUMN_MULTIPLE
    if not with_gradients:
        multiple = KINDS[device.type].evaluation_columns
    return -vocab_size % multiple


class _LinearCrossEntropy(torch.autograd.Function):

    @staticmethod
    def forward(ctx, hidden, weight, targets, bias, logit_cap,
                gradient_scale, with_gradients):
        device, vocab_size = hidden.device, len(weight)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        loss = torch.zeros((), dtype=dtype, device=device)
        hidden_grad = weight_grad = bias_grad = None
        if with_gradients:
            hidden_grad = torch.empty_like(hidden)
            weight_grad = torch.zeros_like(weight, dtype=dtype)
            if bias is not None:
                bias_grad = torch.zeros_like(bias, dtype=dtype)
        padding = padded_columns(vocab_size, device, with_gradients)
        low_weight = weight.to(hidden.dtype)
        low_bias = None if bias is None else bias.to(hidden.dtype)
        if padding:
            low_weight = F.pad(low_weight, (0, 0, 0, padding))
            if bias is not None:
                low_bias = F.pad(low_bias, (0, padding))
        with torch.autocast(device.type, enabled=False):
            chunk_rows = KINDS[device.type].chunk_rows
            for start in range(0, len(hidden), chunk_rows):
                rows = slice(start, start + chunk_rows)
                logits = F.linear(hidden[rows], low_weight, low_bias)
                if logit_cap:
                    logits, shrinkage = soft_cap(logits, logit_cap)
                logits[:, vocab_size:] = -math.inf
                log_probs = torch.log_softmax(logits, dim=-1, dtype=dtype)
                logits = None
                row_targets = targets[rows, None]
                target_log_probs = log_probs.gather(1, row_targets)
                loss -= target_log_probs.sum()
                if with_gradients:
                    # The gradient of the sum over rows is probabilities minus
                    # one-hot targets. Only the targets' entries are computed
                    # apart, so that the rest is written once, in the dtype of
                    # the products.
                    grad = log_probs.exp_()
                    target_grad = target_log_probs.exp() - 1
                    if logit_cap:
                        slope = shrinkage.pow_(3)
                        grad *= slope
                        target_grad *= slope.gather(1, row_targets)
                    grad = grad.to(hidden.dtype).scatter_(
                        1, row_targets, target_grad.to(hidden.dtype)
                    )
                    hidden_grad[rows] = grad @ low_weight
                    weight_grad += (grad.T @ hidden[rows])[:vocab_size]
                    if bias is not None:
                        bias_grad += grad.sum(0, dtype=dtype)[:vocab_size]
                # The next chunk needs their memory.
                log_probs = grad = shrinkage = slope = None
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        ctx.num_rows, ctx.gradient_scale = len(hidden), gradient_scale
        return loss / len(hidden)

    @staticmethod
    def backward(ctx, loss_grad):
        hidden_grad, weight_grad, bias_grad = ctx.saved_tensors
        scale = loss_grad * ctx.gradient_scale / ctx.num_rows
        return (
            hidden_grad * scale, weight_grad * scale, None,
            None if bias_grad is None else bias_grad * scale,
            None, None, None,
        )
