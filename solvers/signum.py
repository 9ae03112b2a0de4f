"""Signum: the sign of the momentum.

Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex Problems"
(2018).
"""
from pytorch_optimizer import SignSGD

from benchmark_utils.optimizers.groups import decay_groups
from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """Signum; weight decay on matrices and embeddings only."""

    name = "Signum"
    requirements = ["pip::pytorch-optimizer~=4.1.0"]

    parameters = {
        # Lion's rate: Semenov et al. ("Benchmarking Optimizers for Large
        # Language Model Pretraining", 2025) took the same for both at 124 M,
        # and this momentum, Nesterov's, at 210 M. Their weight decay is
        # coupled; this one is Lion's.
        "learning_rate": [1e-4],
        "momentum": [0.95],
        "weight_decay": [0.7],
        "num_steps, warmup_steps": [(19485, 700)],
        "schedule, cooldown": [("cosine", 1.0)],
        "max_grad_norm": [1.0],
    }

    def get_optimizer(self, roles):
        return SignSGD(
            decay_groups(roles, self.weight_decay), lr=self.learning_rate,
            momentum=self.momentum, weight_decouple=True,
        )
