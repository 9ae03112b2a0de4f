"""Muon, with AdamW for all but the hidden matrices.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks"
(2024).
"""
import torch

from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """Muon with close orthogonalisation, and AdamW for the rest."""

    name = "Muon"
    shared_work = "orthogonalisation"

    parameters = {
        # Rate, momentum, decay, iterations and cool-down: modded-nanogpt's
        # track 3, entry 36 (June 2026, n=10), for its model of 162 M with
        # queries, keys and values in matrices of their own.
        "learning_rate": [0.025],
        "momentum": [0.95],
        "weight_decay": [0.05],
        "ns_steps": [12],
        # AdamW's rate for the tied embedding in track 1's run of Muon of
        # 10 October 2024 (one seed, 124 M with rotary positions).
        "aux_learning_rate": [3.6e-3],
        "aux_beta1": [0.9],
        "aux_beta2": [0.95],
        "aux_weight_decay": [0.0],
        # The horizon of the same run, without a warm-up.
        "num_steps, warmup_steps": [(6200, 0)],
        "schedule, cooldown": [("linear", 0.7)],
        "max_grad_norm": [0.0],
    }

    def get_optimizer(self, roles):
        optimizer = torch.optim.Muon(
            roles["hidden_matrices"], lr=self.learning_rate,
            momentum=self.momentum, weight_decay=self.weight_decay,
            # Twelve iterations of these bring singular values above 5e-4 of
            # the matrix's norm within 1 % of 1, but for the rounding of
            # bfloat16; torch's default leaves them between 0.68 and 1.13.
            ns_coefficients=(2.0, -1.5, 0.5), ns_steps=self.ns_steps,
        )
        return self.with_adamw(optimizer, roles)
