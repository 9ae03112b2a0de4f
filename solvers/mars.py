"""MARS-AdamW: Adam on gradients corrected by their last change.

Yuan et al., "MARS: Unleashing the Power of Variance Reduction for Training
Large Models" (2024), in the approximate form that needs one gradient a step.
"""
from pytorch_optimizer import MARS

from benchmark_utils.optimizers.groups import decay_groups
from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """MARS on matrices and embeddings, AdamW on gains and biases."""

    name = "MARS"
    requirements = ["pip::pytorch-optimizer~=4.1.0"]

    parameters = {
        # The authors' run of GPT-2 small on OpenWebText, of 100,000 steps;
        # horizon and warm-up are Adam's here.
        "learning_rate": [6e-3],
        "beta1": [0.95],
        "beta2": [0.99],
        "gamma": [0.025],
        "weight_decay": [0.01],
        "aux_learning_rate": [3e-3],
        "aux_beta1": [0.9],
        "aux_beta2": [0.95],
        "num_steps, warmup_steps": [(19485, 700)],
        "schedule, cooldown": [("cosine", 1.0)],
        "max_grad_norm": [1.0],
    }

    def get_optimizer(self, roles):
        return MARS(
            decay_groups(roles, self.weight_decay), lr=self.learning_rate,
            betas=(self.beta1, self.beta2), gamma=self.gamma,
            lr_1d=self.aux_learning_rate, weight_decay_1d=0.0,
            betas_1d=(self.aux_beta1, self.aux_beta2),
        )
