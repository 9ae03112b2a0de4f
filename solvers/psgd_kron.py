"""PSGD with a Kronecker-factored preconditioner.

Li, "Preconditioned Stochastic Gradient Descent" (2015), in the form of Walters
and Pooladzandi's Kron (2024).
"""
# Without it, torch multiplies Kron's five factors from left to right, starting
# with an outer product of two preconditioners: terabytes at full size.
import opt_einsum  # noqa: F401
from pytorch_optimizer import Kron

from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """PSGD-Kron, and AdamW for all but the hidden matrices."""

    name = "PSGD-Kron"
    requirements = ["pip::pytorch-optimizer~=4.1.0", "pip::opt-einsum"]

    parameters = {
        # modded-nanogpt's README for the rate. At 130 M, Wen et al.
        # ("Fantastic Pretraining Optimizers", 2025) found a quarter of
        # AdamW's rate, which was 1.8e-3 in track 1, and this momentum and
        # weight decay.
        "learning_rate": [5e-4],
        "momentum": [0.95],
        "weight_decay": [0.5],
        # Share of the steps that update the preconditioner.
        "update_probability": [1.0],
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
        optimizer = Kron(
            roles["hidden_matrices"], lr=self.learning_rate,
            momentum=self.momentum, weight_decay=self.weight_decay,
            pre_conditioner_update_probability=self.update_probability,
            # It would draw from NumPy's generator: no saved state has that.
            balance_prob=0.0,
        )
        return self.with_adamw(optimizer, roles)
