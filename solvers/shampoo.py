"""Shampoo, with the step length of Adam.

Gupta et al., "Shampoo: Preconditioned Stochastic Tensor Optimization" (2018);
see ``benchmark_utils/optimizers/shampoo.py``.
"""
from benchmark_utils.optimizers.shampoo import Shampoo
from benchmark_utils.solver import MatrixSolver


class Solver(MatrixSolver):
    """Shampoo, and AdamW for all but the hidden matrices."""

    name = "Shampoo"
    update_sharding = "eigenbasis"

    parameters = {
        # Rate, averages, frequency, decay and cool-down: modded-nanogpt's
        # track 3, entry 21 (May 2026, n=4), for its model of 162 M. It has no
        # warm-up; Adam's update alone is its first four steps, while here the
        # roots are used from the first step on.
        "learning_rate": [1.5e-3],
        "beta1": [0.9],
        "beta2": [0.95],
        # That entry's 1e-10, for gradients of a loss that is summed over
        # 524,288 tokens there, and averaged here.
        "eps": [1.9e-16],
        "precondition_frequency": [5],
        "weight_decay": [0.2],
        # AdamW's rate for the tied embedding in track 1's run of Muon of
        # 10 October 2024 (one seed, 124 M with rotary positions).
        "aux_learning_rate": [3.6e-3],
        "aux_beta1": [0.9],
        "aux_beta2": [0.95],
        "aux_weight_decay": [0.0],
        # The horizon of the same run; the warm-up of SOAP's (solvers/soap.py).
        "num_steps, warmup_steps": [(6200, 250)],
        "schedule, cooldown": [("linear", 0.7)],
        "max_grad_norm": [0.0],
    }

    # It took 4,100 of these steps, and the first four are Adam's alone.
    published = {
        "modern": dict(
            source="modded-nanogpt, track 3, entry 21 (n=4)",
            learning_rate=1.5e-3, beta1=0.9, beta2=0.95, eps=1e-10,
            precondition_frequency=5, weight_decay=0.2,
            embedding_learning_rate=0.3,
            head_learning_rate=1 / 320, gain_learning_rate=0.01,
            aux_learning_rate=0.01, aux_beta1=0.8, aux_beta2=0.95,
            aux_eps=1e-10, aux_weight_decay=0.0,
            num_steps=4150, warmup_steps=0,
            schedule="linear", cooldown=0.7, max_grad_norm=0.0,
        ),
    }

    def get_optimizer(self, roles):
        optimizer = Shampoo(
            roles["hidden_matrices"], lr=self.learning_rate,
            betas=(self.beta1, self.beta2), weight_decay=self.weight_decay,
            precondition_frequency=self.precondition_frequency, eps=self.eps,
        )
        return self.with_adamw(optimizer, roles)
