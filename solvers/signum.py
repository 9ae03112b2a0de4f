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
        # Lion's rate (solvers/lion.py): Semenov et al. ("Benchmarking
        # Optimizers for Large Language Model Pretraining", 2025) took the same
        # for both, for their Llama of 124 M on FineWeb.
        "learning_rate": [1e-4],
        # Semenov et al., for their Llama of 210 M; theirs is Nesterov's.
        "momentum": [0.95],
        # Lion's, decoupled as in the code of Semenov et al.
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
