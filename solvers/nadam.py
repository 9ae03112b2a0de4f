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
        # AdamW's rate and decay (solvers/adamw.py): Wen et al. ("Fantastic
        # Pretraining Optimizers", 2025) found AdamW's best for NAdam too, for
        # their Llama of 130 M with this batch and horizon.
        "learning_rate": [6e-4],
        # Wen et al., the same model.
        "beta1": [0.95],
        "beta2": [0.98],
        # torch's default.
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
