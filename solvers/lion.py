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
        # A sixth of AdamW's rate (solvers/adamw.py), as the authors of Sophia
        # (Liu et al., 2023) took for GPT-2 of this size on OpenWebText. Wen et
        # al. ("Fantastic Pretraining Optimizers", 2025) found an eighth, for
        # their Llama of 130 M with this batch and horizon.
        "learning_rate": [1e-4],
        # Wen et al., the same model: these averages, and seven times AdamW's
        # decay.
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
