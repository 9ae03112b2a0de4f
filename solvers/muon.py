"""Muon, with AdamW for all but the hidden matrices.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks"
(2024).
"""
import torch

from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """Muon with exact orthogonalisation, and AdamW for the rest."""

    name = "Muon"

    parameters = {
        # modded-nanogpt's optimization track, entry 36 (2026): another model,
        # with queries, keys and values in matrices of their own.
        "learning_rate": [0.025],
        "momentum": [0.95],
        "weight_decay": [0.05],
        "ns_steps": [12],
        # Track 1's Muon of October 2024 gave AdamW the tied embedding at this
        # rate, and trained for this horizon.
        "aux_learning_rate": [3.6e-3],
        "aux_beta1": [0.9],
        "aux_beta2": [0.95],
        "aux_weight_decay": [0.0],
        "num_steps, warmup_steps": [(6200, 0)],
        "schedule, cooldown": [("linear", 0.7)],
        "max_grad_norm": [0.0],
    }

    def get_optimizer(self, roles):
        optimizer = torch.optim.Muon(
            roles["hidden_matrices"], lr=self.learning_rate,
            momentum=self.momentum, weight_decay=self.weight_decay,
            # Converges to the orthogonal factor; torch's default does not.
            ns_coefficients=(2.0, -1.5, 0.5), ns_steps=self.ns_steps,
        )
        return self.with_adamw(optimizer, roles)
