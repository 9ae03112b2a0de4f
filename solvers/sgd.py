"""Stochastic gradient descent with momentum."""
import itertools

import torch

from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """SGD with heavy-ball momentum: one learning rate for everything, and
    weight decay on everything, through the momentum."""

    name = "SGD"

    parameters = {
        # The best of eight rates in Marek et al., "Small Batch Size Training
        # for Language Models" (2025), for GPT-2 of this size on FineWeb, with
        # one row a step and no momentum.
        "learning_rate": [0.2],
        # A batch of 512 rows leaves room for momentum; not tuned.
        "momentum": [0.9],
        "weight_decay": [0.0],
        "num_steps, warmup_steps": [(19485, 700)],
        "schedule, cooldown": [("cosine", 1.0)],
        "max_grad_norm": [1.0],
    }

    def get_optimizer(self, roles):
        return torch.optim.SGD(
            itertools.chain(*roles.values()), lr=self.learning_rate,
            momentum=self.momentum, weight_decay=self.weight_decay,
        )
