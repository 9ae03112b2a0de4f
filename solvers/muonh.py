"""MuonH: Muon on spheres, with AdamW for all but the hidden matrices.

Wen et al., "Fantastic Pretraining Optimizers and Where to Find Them, 2.1:
Hyperball Optimization" (2025).
"""
import torch

from benchmark_utils.optimizers.hyperball import Hyperball
from benchmark_utils.solver import MatrixSolver


class Solver(MatrixSolver):
    """MuonH; the hidden matrices keep their initial norm."""

    name = "MuonH"
    update_sharding = "orthogonalisation"

    parameters = {
        # Rate, momentum, iterations and schedule: modded-nanogpt's track 3,
        # entry 5 (April 2026, n=10), for its model of 162 M. The norm that is
        # kept is another there: beside GPT-2's initialisation, queries, keys
        # and values start equal, MLP inputs at 1.6, attention outputs at 6
        # and MLP outputs at 8 times the norm.
        "learning_rate": [0.018],
        "momentum": [0.95],
        "ns_steps": [12],
        # AdamW's rate for the tied embedding in track 1's run of Muon of
        # 10 October 2024 (one seed, 124 M with rotary positions).
        "aux_learning_rate": [3.6e-3],
        "aux_beta1": [0.9],
        "aux_beta2": [0.95],
        "aux_weight_decay": [0.0],
        # The horizon of the same run, without a warm-up.
        "num_steps, warmup_steps": [(6200, 0)],
        "schedule, cooldown": [("linear", 1.0)],
        "max_grad_norm": [0.0],
    }

    def get_optimizer(self, roles):
        optimizer = Hyperball(torch.optim.Muon(
            roles["hidden_matrices"], lr=self.learning_rate,
            momentum=self.momentum, weight_decay=0.0,
            ns_coefficients=(2.0, -1.5, 0.5), ns_steps=self.ns_steps,
        ))
        return self.with_adamw(optimizer, roles)
