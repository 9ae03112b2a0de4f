"""Shampoo, with the step length of Adam.

Gupta et al., "Shampoo: Preconditioned Stochastic Tensor Optimization" (2018);
see ``benchmark_utils/optimizers/shampoo.py``.
"""
from benchmark_utils.optimizers.shampoo import Shampoo
from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """Shampoo, and AdamW for all but the hidden matrices."""

    name = "Shampoo"

    parameters = {
        # modded-nanogpt's optimization track, entry 21 (2026); another model.
        "learning_rate": [1.5e-3],
        "beta1": [0.9],
        "beta2": [0.95],
        "precondition_frequency": [5],
        "weight_decay": [0.2],
        # Track 1's Muon of October 2024 gave AdamW the tied embedding at this
        # rate, and trained for this horizon.
        "aux_learning_rate": [3.6e-3],
        "aux_beta1": [0.9],
        "aux_beta2": [0.95],
        "aux_weight_decay": [0.0],
        "num_steps, warmup_steps": [(6200, 250)],
        "schedule, cooldown": [("linear", 0.7)],
        "max_grad_norm": [0.0],
    }

    def get_optimizer(self, roles):
        optimizer = Shampoo(
            roles["hidden_matrices"], lr=self.learning_rate,
            betas=(self.beta1, self.beta2), weight_decay=self.weight_decay,
            precondition_frequency=self.precondition_frequency,
        )
        return self.with_adamw(optimizer, roles)
