"""MuonH: Muon on spheres, with AdamW for all but the hidden matrices.

Wen et al., "Fantastic Pretraining Optimizers and Where to Find Them, 2.1:
Hyperball Optimization" (2025).
"""
import torch

from benchmark_utils.optimizers.hyperball import Hyperball
from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """MuonH; the hidden matrices keep their initial norm."""

    name = "MuonH"

    parameters = {
        # modded-nanogpt's optimization track, entry 5 (2026): another model,
        # initialised at 1.25 to 3 times the usual norm, which is kept.
        "learning_rate": [0.018],
        "momentum": [0.95],
        "ns_steps": [12],
        # Track 1's Muon of October 2024 gave AdamW the tied embedding at this
        # rate, and trained for this horizon.
        "aux_learning_rate": [3.6e-3],
        "aux_beta1": [0.9],
        "aux_beta2": [0.95],
        "aux_weight_decay": [0.0],
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
