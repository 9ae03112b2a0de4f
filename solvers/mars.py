"""MARS-AdamW: Adam on gradients corrected by their last change.

Yuan et al., "MARS: Unleashing the Power of Variance Reduction for Training
Large Models" (2024); see ``benchmark_utils/optimizers/mars.py``.
"""
import torch

from benchmark_utils.optimizers.combined import CombinedOptimizer
from benchmark_utils.optimizers.mars import MARS
from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """MARS on matrices and embeddings, AdamW on gains and biases."""

    name = "MARS"

    parameters = {
        # All but the schedule: the authors' run of GPT-2 small (without
        # biases) on OpenWebText, 100,000 steps of 480 rows, one seed
        # (config/train_gpt2_small_mars.py and the defaults of their MARS).
        "learning_rate": [6e-3],
        "beta1": [0.95],
        "beta2": [0.99],
        "gamma": [0.025],
        "weight_decay": [0.01],
        "aux_learning_rate": [3e-3],
        "aux_beta1": [0.9],
        "aux_beta2": [0.95],
        "aux_weight_decay": [0.1],
        # AdamW's: see solvers/adamw.py.
        "num_steps, warmup_steps": [(19485, 700)],
        "schedule, cooldown": [("cosine", 1.0)],
        "max_grad_norm": [1.0],
    }

    def get_optimizer(self, roles):
        matrices = roles["hidden_matrices"] + roles["embeddings"]
        return CombinedOptimizer(
            MARS(
                matrices + roles["head"], lr=self.learning_rate,
                betas=(self.beta1, self.beta2), gamma=self.gamma,
                weight_decay=self.weight_decay,
            ),
            torch.optim.AdamW(
                [{"params": roles["gains_and_biases"]}],
                lr=self.aux_learning_rate,
                betas=(self.aux_beta1, self.aux_beta2),
                weight_decay=self.aux_weight_decay, fused=True,
            ),
        )
