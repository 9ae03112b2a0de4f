"""NAdam, with decoupled weight decay.

Dozat, "Incorporating Nesterov Momentum into Adam" (2016).
"""
import torch

from benchmark_utils.optimizers.groups import decay_groups
from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """NAdam; weight decay on matrices and embeddings only."""

    name = "NAdam"

    parameters = {
        # Wen et al. ("Fantastic Pretraining Optimizers", 2025), at 130 M with
        # this batch and horizon: these averages, and the rate and weight decay
        # of AdamW (solvers/adam.py).
        "learning_rate": [6e-4],
        "beta1": [0.95],
        "beta2": [0.98],
        "momentum_decay": [4e-3],
        "weight_decay": [0.1],
        "num_steps, warmup_steps": [(19485, 700)],
        "schedule, cooldown": [("cosine", 1.0)],
        "max_grad_norm": [1.0],
    }

    def get_optimizer(self, roles):
        return torch.optim.NAdam(
            decay_groups(roles, self.weight_decay), lr=self.learning_rate,
            betas=(self.beta1, self.beta2), decoupled_weight_decay=True,
            momentum_decay=self.momentum_decay,
        )
