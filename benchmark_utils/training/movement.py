"""The movement of weights: whether training did anything at all."""
import torch


@torch.no_grad()
def weight_sums(model):
    """The sum of each parameter, a float32 tensor [number of parameters].

    Where these are the same, no weight has moved. Norms would not tell: some
    methods keep them.
    """
    return torch.stack([p.float().sum() for p in model.parameters()])
