"""The loss of a model on validation tokens."""
import math

import torch

from benchmark_utils.distributed.world import ALONE
from benchmark_utils.hardware.device import KINDS, autocast


@torch.no_grad()
def evaluate(model, loader, dtype=torch.float32, world=ALONE):
    """Mean loss over the first batch of a loader, all validation rows.

    Parameters
    ----------
    model : nn.Module
        ``model(inputs, targets)`` is the mean loss, a float32 scalar tensor.
    loader : BatchLoader
        One step of it is the validation set.
    dtype : torch.dtype
        Precision of matrix products: float32, or bfloat16 by autocast.
    world : World
        The ranks that share the rows; all of them have the whole loader.

    Returns
    -------
    loss : float
        In nats per token, summed in float64, in the order of the rows
        whatever the number of ranks.
    """
    device = next(model.parameters()).device
    (inputs, targets), = loader.batches(device, stop_step=1)
    size = evaluation_rows(
        len(inputs), loader.sequence_length, device, world.size
    )
    micro_batches = list(zip(
        inputs.split(size), targets.split(size), strict=True
    ))
    # Summed on the processor: not every device knows float64.
    losses = torch.zeros(len(micro_batches), device=device)
    for index in range(world.rank, len(micro_batches), world.size):
        micro_inputs, micro_targets = micro_batches[index]
        with autocast(device, dtype):
            losses[index] = model(micro_inputs, micro_targets)
    return sum(
        loss * len(micro_inputs) for loss, (micro_inputs, _) in
        zip(world.sum(losses).tolist(), micro_batches, strict=True)
    ) / len(inputs)


def finite_or_inf(loss):
    """A loss as results have it: infinite where it is not finite, because a
    curve with a NaN has its points misplaced in pictures."""
    return loss if math.isfinite(loss) else math.inf


def evaluation_rows(num_rows, sequence_length, device, world_size=1):
    """Rows that go through a model at once in an evaluation.

    Without gradients they need little memory, so that their number depends on
    the kind of device alone, never on what is free; or on the number of ranks
    where there would be nothing to do for some. It is a divisor of the rows
    where one is near: a rest would be compiled anew.
    """
    tokens = KINDS[device.type].evaluation_tokens
    most = max(1, min(tokens // sequence_length, num_rows // world_size))
    return next(
        (size for size in range(most, most // 2, -1) if num_rows % size == 0),
        min(most, num_rows),
    )
