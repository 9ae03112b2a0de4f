"""Hyperball: another optimizer's direction, on a sphere of fixed radius.

Wen et al., "Fantastic Pretraining Optimizers and Where to Find Them, 2.1:
Hyperball Optimization" (2025). A matrix keeps the Frobenius norm R that it
had at initialisation: W <- R n(W - lr R n(u)), where u is the update of the
other optimizer and n(x) = x / ||x||. There is no weight decay: the learning
rate is the angle of a step, in radians.
"""
import torch

from benchmark_utils.optimizers.interface import (
    copy_rate,
    load_state,
    parts_of,
    set_rate,
)


class Hyperball(torch.optim.Optimizer):
    """The hyperball variant of any optimizer, sharing its ``param_groups``.

    Parameters
    ----------
    base : torch.optim.Optimizer
        An optimizer without weight decay. The learning rate of its groups is
        that of the hyperball.

    Raises
    ------
    ValueError
        If a parameter is zero: it has no sphere to stay on.
    """

    def __init__(self, base):
        self.base = base
        super().__init__(base.param_groups, {})
        for group in self.param_groups:
            for p in group["params"]:
                radius = p.detach().norm()
                if radius == 0:
                    raise ValueError(
                        "A hyperball method needs matrices that are not zero "
                        "at initialisation: their norm is what it keeps."
                    )
                self.state[p]["radius"] = radius

    def parts(self):
        """Return the optimizers that keep state: radii are in this one."""
        return [self, *parts_of(self.base)]

    @torch.no_grad()
    def step(self):
        rates = [copy_rate(group["lr"]) for group in self.param_groups]
        before = [
            [(p, p.clone()) for p in group["params"] if p.grad is not None]
            for group in self.param_groups
        ]
        # The update is normalised below. A learning rate of 1 keeps the
        # precision of its difference from the weights.
        for group in self.param_groups:
            set_rate(group, 1.0)
        try:
            self.base.step()
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                set_rate(group, rate)
        for group, weights in zip(self.param_groups, before, strict=True):
            for p, w in weights:
                radius = self.state[p]["radius"]
                direction = w - p
                length = direction.norm().clamp(min=1e-30)
                p.copy_(w - group["lr"] * radius * direction / length)
                p.mul_(radius / p.norm())

    def state_dict(self):
        return {"radii": super().state_dict(), "base": self.base.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict["radii"])
        load_state(self.base, state_dict["base"])
        # Loading replaced the base's group dicts.
        self.param_groups = self.base.param_groups
