"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam" (2024). The
first gradient only sets the basis; the weights don't move.
"""
from benchmark_utils.optimizers.soap import SOAP
from benchmark_utils.solver import MatrixSolver


class Solver(MatrixSolver):
    """SOAP, and AdamW for all but the hidden matrices."""

    name = "SOAP"
    requirements = ["pip::pytorch-optimizer~=4.1.0"]
    update_sharding = "eigenbasis"

    parameters = {
        # All settings, those of AdamW for the tied embedding too:
        # modded-nanogpt's track 1, run of SOAP of 9 October 2024 (one seed,
        # 124 M with rotary positions, queries, keys and values in matrices of
        # their own).
        "learning_rate": [1.8e-3],
        "beta1": [0.95],
        "beta2": [0.95],
        "precondition_frequency": [10],
        "weight_decay": [0.0],
        "aux_learning_rate": [3.6e-3],
        "aux_beta1": [0.9],
        "aux_beta2": [0.95],
        "aux_weight_decay": [0.0],
        "num_steps, warmup_steps": [(6000, 250)],
        "schedule, cooldown": [("linear", 0.3)],
        "max_grad_norm": [0.0],
    }

    # The run's queries, keys and values are matrices of their own, as here
    # with fused_qkv=False.
    published = {
        "rotary": dict(
            source="modded-nanogpt, track 1, 2024-10-09_SOAP (n=1)",
            learning_rate=1.8e-3, beta1=0.95, beta2=0.95,
            precondition_frequency=10, weight_decay=0.0,
            aux_learning_rate=3.6e-3, aux_beta1=0.9, aux_beta2=0.95,
            aux_weight_decay=0.0, num_steps=6000, warmup_steps=250,
            schedule="linear", cooldown=0.3, max_grad_norm=0.0,
        ),
    }

    def get_optimizer(self, roles):
        optimizer = SOAP(
            roles["hidden_matrices"], lr=self.learning_rate,
            betas=(self.beta1, self.beta2), weight_decay=self.weight_decay,
            precondition_frequency=self.precondition_frequency,
        )
        return self.with_adamw(optimizer, roles)
