"""Several optimizers as one, each with its own parameters."""
import torch

from benchmark_utils.optimizers.interface import load_state, parts_of


class CombinedOptimizer(torch.optim.Optimizer):
    """Optimizers that step together.

    ``param_groups`` holds the same dicts as the optimizers do, so a
    learning-rate schedule acts on all of them.

    Parameters
    ----------
    *optimizers : torch.optim.Optimizer
        Their parameters are disjoint.
    """

    def __init__(self, *optimizers):
        self.optimizers = optimizers
        super().__init__(
            [group for one in optimizers for group in one.param_groups], {}
        )

    def parts(self):
        return [part for one in self.optimizers for part in parts_of(one)]

    def step(self):  # type: ignore[override]
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self):
        return {"optimizers": [one.state_dict() for one in self.optimizers]}

    def load_state_dict(self, state_dict):
        for one, state in zip(
            self.optimizers, state_dict["optimizers"], strict=True
        ):
            load_state(one, state)
        # Loading replaced the optimizers' group dicts.
        self.param_groups = [
            group for one in self.optimizers for group in one.param_groups
        ]
