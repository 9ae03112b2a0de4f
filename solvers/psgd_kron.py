"""PSGD with a Kronecker-factored preconditioner.

Li, "Preconditioned Stochastic Gradient Descent" (2015), in the form of Walters
and Pooladzandi's Kron (2024).
"""
# Without opt_einsum, torch multiplies Kron's five factors from left to right,
# which forms an outer product of two preconditioners first: terabytes for
# GPT-2.
import opt_einsum  # noqa: F401
from pytorch_optimizer import Kron

from benchmark_utils.solver import MatrixSolver


class Solver(MatrixSolver):
    """PSGD-Kron, and AdamW for all but the hidden matrices."""

    name = "PSGD-Kron"
    requirements = ["pip::pytorch-optimizer~=4.1.0", "pip::opt-einsum"]

    parameters = {
        # modded-nanogpt's README, without a run. It agrees with Wen et al.
        # ("Fantastic Pretraining Optimizers", 2025), whose Llama of 130 M
        # wants a quarter of AdamW's rate: that was 1.8e-3 in track 1.
        "learning_rate": [5e-4],
        # Momentum and decay: Wen et al., the same model.
        "momentum": [0.95],
        "weight_decay": [0.5],
        # Share of the steps that update the preconditioner.
        "update_probability": [1.0],
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

    def get_optimizer(self, roles):
        optimizer = Kron(
            roles["hidden_matrices"], lr=self.learning_rate,
            momentum=self.momentum, weight_decay=self.weight_decay,
            pre_conditioner_update_probability=self.update_probability,
            # No balancing: it draws from NumPy's global generator.
            balance_prob=0.0,
        )
        return self.with_adamw(optimizer, roles)
