"""AdamH: Adam on spheres, with AdamW for all but the hidden matrices.

Wen et al., "Fantastic Pretraining Optimizers and Where to Find Them, 2.1:
Hyperball Optimization" (2025).
"""
import torch

from benchmark_utils.optimizers.hyperball import Hyperball
from benchmark_utils.solver import MatrixSolver


class Solver(MatrixSolver):
    """AdamH; the hidden matrices keep their initial norm."""

    name = "AdamH"

    parameters = {
        # Rate, averages, warm-up and schedule: modded-nanogpt's track 3,
        # entry 4 (April 2026, n=5), for its model of 162 M. The norm that is
        # kept is another there: see solvers/muonh.py.
        "learning_rate": [0.018],
        "beta1": [0.9],
        "beta2": [0.95],
        # That entry's 1e-8, for gradients of a loss that is summed over
        # 524,288 tokens there, and averaged here.
        "eps": [1.9e-14],
        # AdamW's rate for the tied embedding in track 1's run of Muon of
        # 10 October 2024 (one seed, 124 M with rotary positions).
        "aux_learning_rate": [3.6e-3],
        "aux_beta1": [0.9],
        "aux_beta2": [0.95],
        "aux_weight_decay": [0.0],
        # The horizon of the same run, with the entry's warm-up.
        "num_steps, warmup_steps": [(6200, 250)],
        "schedule, cooldown": [("linear", 1.0)],
        "max_grad_norm": [0.0],
    }

    def get_optimizer(self, roles):
        optimizer = Hyperball(torch.optim.Adam(
            roles["hidden_matrices"], lr=self.learning_rate,
            betas=(self.beta1, self.beta2), eps=self.eps, fused=True,
        ))
        return self.with_adamw(optimizer, roles)
