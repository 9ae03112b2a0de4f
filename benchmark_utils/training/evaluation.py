"""The loss of a model on validation tokens."""
import math

import torch

from benchmark_utils.distributed.world import ALONE, World
from benchmark_utils.hardware.device import KINDS, autocast


@torch.no_grad()
def evaluate(model: torch.nn.Module, loader,
             dtype: torch.dtype = torch.float32,
             world: World = ALONE) -> float:
    """Compute the mean loss over all validation rows.

    Parameters
    ----------
    model : nn.Module
        ``model(inputs, targets)`` is the mean loss, a float32 scalar tensor.
    loader : BatchLoader
        Its first batch is the validation set.
    dtype : torch.dtype
        Precision of matrix products: float32, or bfloat16 by autocast.
    world : World
        The ranks that share the rows; each has the whole loader.

    Returns
    -------
    loss : float
        Nats per token, summed in float64 in the order of the rows for any
        number of ranks.
    """
    device = next(model.parameters()).device
    (inputs, targets), = loader.batches(device, stop_step=1)
    size = evaluation_rows(
        len(inputs), loader.sequence_length, device, world.size
    )
    micro_batches = list(zip(
        inputs.split(size), targets.split(size), strict=True
    ))
    # The sum is on the CPU because not every device has float64.
    losses = torch.zeros(len(micro_batches), device=device)
    for index in range(world.rank, len(micro_batches), world.size):
        micro_inputs, micro_targets = micro_batches[index]
        with autocast(device, dtype):
            losses[index] = model(micro_inputs, micro_targets)
    return sum(
        loss * len(micro_inputs) for loss, (micro_inputs, _) in
        zip(world.sum(losses).tolist(), micro_batches, strict=True)
    ) / len(inputs)


def finite_or_inf(loss: float) -> float:
    """Replace NaN and -inf by inf: a NaN would misplace the points of a
    plotted curve."""
    return loss if math.isfinite(loss) else math.inf


def evaluation_rows(num_rows: int, sequence_length: int,
                    device: torch.device, world_size: int = 1) -> int:
    """Choose the rows per forward pass of an evaluation.

    Without gradients, rows need little memory, so the number depends on the
    kind of device and never on free memory; it is lower if some ranks would
    have no rows. A near divisor of all rows is preferred: a smaller last
    micro-batch would be compiled again.
    """
    tokens = KINDS[device.type].evaluation_tokens
    most = max(1, min(tokens // sequence_length, num_rows // world_size))
    return next(
        (size for size in range(most, most // 2, -1) if num_rows % size == 0),
        min(most, num_rows),
    )
