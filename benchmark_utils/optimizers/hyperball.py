"""Hyperball: another optimizer's direction, on a sphere of fixed radius.

Wen et al., "Fantastic Pretraining Optimizers and Where to Find Them, 2.1:
Hyperball Optimization" (2025). A matrix keeps the Frobenius norm R that it
was initialised with: W <- R n(W - lr R n(u)), where u is the update of the
other optimizer and n(x) = x / ||x||. There is no weight decay: the learning
rate is the angle of a step, in radians.
"""
import torch

from benchmark_utils.optimizers.combined import CombinedOptimizer


class Hyperball(CombinedOptimizer):
    """Turn any optimizer into its hyperball variant.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Without weight decay. Its learning rate is that of the hyperball.

    Raises
    ------
    ValueError
        If a parameter is zero, and so has no sphere to stay on.
    """

    def __init__(self, optimizer):
        super().__init__(optimizer)
        for group in self.param_groups:
            if any(not parameter.any() for parameter in group["params"]):
                raise ValueError(
                    "A hyperball method needs matrices that are not zero at "
                    "initialisation: their norm is what it keeps."
                )

    @torch.no_grad()
    def step(self):
        base, = self.optimizers
        rates = [group["lr"] for group in self.param_groups]
        before = [
            [p.clone() for p in group["params"]]
            for group in self.param_groups
        ]
        # The length of the update is divided out; at this learning rate its
        # difference from the weights loses no precision.
        for group in self.param_groups:
            group["lr"] = 1.0
        base.step()
        for group, rate, weights in zip(self.param_groups, rates, before):
            group["lr"] = rate
            for p, w in zip(group["params"], weights):
                state = base.state[p]
                if "radius" not in state:
                    state["radius"] = w.norm()
                direction = w - p
                length = direction.norm().clamp(min=1e-30)
                p.copy_(w - rate * state["radius"] * direction / length)
                p.mul_(state["radius"] / p.norm())
