"""The loss of a language model's head, without all its logits in memory.

The logits of a vocabulary of 50,257 take 200 kB per token in float32, and
the usual loss keeps three to four copies of them. Here they exist for a
bounded number of tokens at a time, once, and their gradient is computed along
the way (as in Hsu et al., "Liger Kernel", 2024).
"""
import math

import torch
import torch.nn.functional as F

from benchmark_utils.device import KINDS, product_dtype

# With gradients, the logits get columns that are no tokens, of probability
# zero, up to a multiple of this: the two products of the backward pass take up
# to a third longer with GPT-2's 50,257.
COLUMN_MULTIPLE = 64


def linear_cross_entropy(hidden, weight, targets):
    """Mean cross-entropy of ``softmax(hidden @ weight.T)``.

    The matrix products are computed in the autocast dtype where autocast is
    on; softmax, loss and the sum of the weight's gradient in float32.

    Parameters
    ----------
    hidden : tensor [rows, width]
    weight : tensor [vocab_size, width]
    targets : int64 tensor [rows]

    Returns
    -------
    loss : float32 scalar tensor, nats per row
    """
    return _LinearCrossEntropy.apply(
        hidden.to(product_dtype(hidden)), weight, targets,
        torch.is_grad_enabled(),
    )


class _LinearCrossEntropy(torch.autograd.Function):

    @staticmethod
    def forward(ctx, hidden, weight, targets, with_gradients):
        loss = torch.zeros((), device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if with_gradients else None
        weight_grad = torch.zeros_like(weight) if with_gradients else None
        vocab_size = len(weight)
        low_weight = weight.to(hidden.dtype)
        if with_gradients:
            low_weight = F.pad(
                low_weight, (0, 0, 0, -vocab_size % COLUMN_MULTIPLE)
            )
        with torch.autocast(hidden.device.type, enabled=False):
            chunk_rows = KINDS[hidden.device.type].chunk_rows
            for start in range(0, len(hidden), chunk_rows):
                rows = slice(start, start + chunk_rows)
                logits = hidden[rows] @ low_weight.T
                logits[:, vocab_size:] = -math.inf
                log_probs = torch.log_softmax(
                    logits, dim=-1, dtype=torch.float32
                )
                logits = None
                row_targets = targets[rows, None]
                loss -= log_probs.gather(1, row_targets).sum()
                if with_gradients:
                    # Of the sum over rows: probabilities - one-hot targets.
                    grad = log_probs.exp_()
                    grad.scatter_add_(
                        1, row_targets, -torch.ones_like(grad[:, :1])
                    )
                    grad = grad.to(hidden.dtype)
                    hidden_grad[rows] = grad @ low_weight
                    weight_grad += (grad.T @ hidden[rows])[:vocab_size]
                # The next chunk needs the memory.
                log_probs = grad = None
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.num_rows = len(hidden)
        return loss / len(hidden)

    @staticmethod
    def backward(ctx, loss_grad):
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = loss_grad / ctx.num_rows
        return hidden_grad * scale, weight_grad * scale, None, None
