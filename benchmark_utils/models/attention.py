"""Causal attention, computed the fastest way for a device and precision."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows of scores at a time: large enough for matrix products at full speed,
# small enough to skip most of what causality masks.
BLOCK_ROWS = 256
# Scores at a time, over all heads: what stays in a processor's cache.
BLOCK_SCORES = 3 * 2**20


def causal_attention(queries, keys, values, scale=None):
    """Each position's average of the values up to it.

    torch's fused attention, except in bfloat16 on a CPU: there matrix
    products block by block take about half its time. They round the scores to
    bfloat16, as autocast does with every other product, and softmax is
    computed in float32 within. The backward pass computes the probabilities
    again (Dao et al., "FlashAttention", 2022): kept, they would be one of the
    largest parts of a step's memory.

    Parameters
    ----------
    queries, keys, values : tensors [batch, head, sequence, head width]
    scale : float or None
        Factor of the scores; None is 1 / sqrt(head width).

    Returns
    -------
    averages : tensor [batch, head, sequence, head width]
    """
    if queries.device.type != "cpu" or queries.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scale
        )
    queries = queries / (
        math.sqrt(queries.shape[-1]) if scale is None else 1 / scale
    )
    averages = _blockwise(
        *(x.flatten(0, 1).contiguous() for x in (queries, keys, values))
    )
    return averages.unflatten(0, queries.shape[:2])


# An operation of its own, so that the compiler does not look into it: it would
# unroll the blocks, and its softmax is slower than torch's.
@torch.library.custom_op("nanogpt::blockwise_attention", mutates_args=())
def _blockwise(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention on [heads of all rows, sequence, head width], contiguous, of
    queries that are scaled already."""
    averages = torch.empty_like(values)
    mask = _block_mask(queries)
    for heads, rows, seen in _blocks(queries):
        probabilities = _probabilities(
            queries[heads, rows].contiguous(), keys[heads, seen].contiguous(),
            mask,
        )
        averages[heads, rows] = probabilities @ values[heads, seen]
    return averages


@torch.library.custom_op(
    "nanogpt::blockwise_attention_backward", mutates_args=()
)
def _blockwise_backward(
    queries: Tensor, keys: Tensor, values: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    queries_grad = torch.empty_like(queries)
    keys_grad, values_grad = torch.zeros_like(keys), torch.zeros_like(values)
    mask = _block_mask(queries)
    for heads, rows, seen in _blocks(queries):
        block_queries, block_grad, block_keys, block_values = (
            x.contiguous() for x in (
                queries[heads, rows], grad[heads, rows], keys[heads, seen],
                values[heads, seen],
            )
        )
        probabilities = _probabilities(block_queries, block_keys, mask)
        # This name is private, pinned by torch~=2.13. It takes one pass
        # over the scores, the formula in public operations three.
        scores_grad = torch._softmax_backward_data(
            block_grad @ block_values.mT, probabilities, -1,
            probabilities.dtype,
        )
        values_grad[heads, seen] += probabilities.mT @ block_grad
        keys_grad[heads, seen] += scores_grad.mT @ block_queries
        queries_grad[heads, rows] = scores_grad @ block_keys
    return queries_grad, keys_grad, values_grad


_blockwise.register_fake(
    lambda queries, keys, values: torch.empty_like(values)
)
_blockwise_backward.register_fake(
    lambda *tensors: tuple(torch.empty_like(x) for x in tensors[:3])
)
_blockwise.register_autograd(
    lambda ctx, grad: _blockwise_backward(
        *ctx.saved_tensors, grad.contiguous()
    ),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def _blocks(queries):
    """Yield three slices: heads, the rows of a block, and the keys that these
    rows attend to."""
    num_heads, length, _ = queries.shape
    heads = max(1, BLOCK_SCORES // (min(BLOCK_ROWS, length) * length))
    for head in range(0, num_heads, heads):
        for start in range(0, length, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, length)
            yield slice(head, head + heads), slice(start, stop), slice(stop)


def _block_mask(queries):
    size = min(BLOCK_ROWS, queries.shape[1])
    return queries.new_full((size, size), -math.inf).triu(1)


def _probabilities(queries, keys, mask):
    """Probabilities of a block of queries over the keys up to its end. The
    tensors are contiguous, because a matrix product copies a transposed slice
    slowly."""
    scores = queries @ keys.mT
    # The last columns are the block's own positions.
    size = scores.shape[-2]
    scores[..., -size:] += mask[:size, :size]
    return scores.softmax(-1)
