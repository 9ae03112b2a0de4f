"""Lion.

Chen et al., "Symbolic Discovery of Optimization Algorithms" (2023).
"""
from pytorch_optimizer import Lion

from benchmark_utils.optimizers.groups import decay_groups
from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """Lion; weight decay on matrices and embeddings only."""

    name = "Lion"
    requirements = ["pip::pytorch-optimizer~=4.1.0"]

    parameters = {
        # Beside AdamW (solvers/adam.py): at 130 M, with this batch and
        # horizon, Wen et al. ("Fantastic Pretraining Optimizers", 2025) found
        # an eighth of its rate, seven times its weight decay and these
        # averages; for GPT-2 of this size, the authors of Sophia (2023) took
        # a sixth: this rate.
        "learning_rate": [1e-4],
        "beta1": [0.9],
        "beta2": [0.95],
        "weight_decay": [0.7],
        "num_steps, warmup_steps": [(19485, 700)],
        "schedule, cooldown": [("cosine", 1.0)],
        "max_grad_norm": [1.0],
    }

    def get_optimizer(self, roles):
        return Lion(
            decay_groups(roles, self.weight_decay), lr=self.learning_rate,
            betas=(self.beta1, self.beta2), weight_decouple=True,
        )
