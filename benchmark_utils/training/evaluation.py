"""The loss of a model on validation tokens."""
import torch

from benchmark_utils.device import KINDS, autocast


@torch.no_grad()
def evaluate(model, loader, dtype=torch.float32):
    """Mean loss over the first batch of a loader, all validation rows.

    Parameters
    ----------
    model : nn.Module
        ``model(inputs, targets)`` is the mean loss, a float32 scalar tensor.
    loader : BatchLoader
        One step of it is the validation set.
    dtype : torch.dtype
        Of matrix products: float32, or bfloat16 by autocast.

    Returns
    -------
    loss : float
        In nats per token, summed in float64.
    """
    device = next(model.parameters()).device
    (inputs, targets), = loader.batches(device, stop_step=1)
    size = evaluation_rows(len(inputs), loader.sequence_length, device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for micro_inputs, micro_targets in zip(
        inputs.split(size), targets.split(size)
    ):
        with autocast(device, dtype):
            loss = model(micro_inputs, micro_targets)
        total += loss.double() * len(micro_inputs)
    return total.item() / len(inputs)


def evaluation_rows(num_rows, sequence_length, device):
    """Rows that go through a model at once in an evaluation.

    Without gradients they need little memory, so that their number depends on
    the kind of device alone, never on what is free. It is a divisor of the
    rows where one is near: a rest would be compiled anew.
    """
    tokens = KINDS[device.type].evaluation_tokens
    most = max(1, tokens // sequence_length)
    return next(
        (size for size in range(most, most // 2, -1) if num_rows % size == 0),
        min(most, num_rows),
    )
