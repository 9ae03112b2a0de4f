"""Muon, with AdamW for all but the hidden matrices.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks"
(2024).
"""
import torch

from benchmark_utils.solver import MatrixSolver

POLYNOMIALS = {
    # Twelve iterations bring singular values above 5e-4 of the matrix's norm
    # within 1 % of 1, but for the rounding of bfloat16.
    "convergent": (2.0, -1.5, 0.5),
    # Those of Jordan et al. and torch: five iterations leave singular values
    # between 0.68 and 1.13.
    "steep": (3.4445, -4.775, 2.0315),
}


class Solver(MatrixSolver):
    """Muon with close orthogonalisation, and AdamW for the rest."""

    name = "Muon"
    update_sharding = "orthogonalisation"

    parameters = {
        # Rate, momentum, decay, iterations and cool-down: modded-nanogpt's
        # track 3, entry 36 (June 2026, n=10), for its model of 162 M with
        # queries, keys and values in matrices of their own.
        "learning_rate": [0.025],
        "momentum": [0.95],
        "weight_decay": [0.05],
        "ns_steps": [12],
        # A key of POLYNOMIALS; None is "convergent".
        "ns_polynomial": [None],
        # How the rate depends on the shape of a matrix: torch's adjust_lr_fn.
        "adjust_lr": [None],
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

    # On `rotary`: the run's rate is 3.6e-4 times the root of the longer side,
    # which is 1.8e-3 to torch, whose factor is 0.2. It orthogonalises queries,
    # keys and values each by itself, as here with fused_qkv=False.
    published = {
        "rotary": dict(
            source="modded-nanogpt, track 1, 2024-10-10_Muon (n=1)",
            learning_rate=1.8e-3, adjust_lr="match_rms_adamw", momentum=0.95,
            weight_decay=0.0, ns_steps=5,
            ns_polynomial="steep",
            aux_learning_rate=3.6e-3, aux_beta1=0.9, aux_beta2=0.95,
            aux_weight_decay=0.0, num_steps=6200, warmup_steps=0,
            schedule="linear", cooldown=0.29, max_grad_norm=0.0,
        ),
        "modern": dict(
            source="modded-nanogpt, track 3, entry 36 (n=10)",
            learning_rate=0.025, momentum=0.95, weight_decay=0.05,
            ns_steps=12, embedding_learning_rate=0.7,
            head_learning_rate=0.004, gain_learning_rate=0.015,
            aux_learning_rate=0.015, aux_beta1=0.8, aux_beta2=0.95,
            aux_eps=1e-10, aux_weight_decay=0.001, gain_weight_decay=0.001,
            num_steps=3250, warmup_steps=0,
            schedule="linear", cooldown=0.7, max_grad_norm=0.0,
        ),
    }

    def get_optimizer(self, roles):
        optimizer = torch.optim.Muon(
            roles["hidden_matrices"], lr=self.learning_rate,
            momentum=self.momentum, weight_decay=self.weight_decay,
            ns_coefficients=POLYNOMIALS[self.ns_polynomial or "convergent"],
            ns_steps=self.ns_steps, adjust_lr_fn=self.adjust_lr,
        )
        return self.with_adamw(optimizer, roles)
