"""NorMuon: Muon, with the rows of its updates normalised.

Li et al., "NorMuon: Making Muon more efficient and scalable" (2025).
"""
from pytorch_optimizer import NorMuon

from benchmark_utils.solver import MatrixSolver


class Solver(MatrixSolver):
    """NorMuon, and AdamW for the rest."""

    name = "NorMuon"
    requirements = ["pip::pytorch-optimizer~=4.1.0"]
    update_sharding = "orthogonalisation"

    parameters = {
        # Rates, decay, iterations and cool-down: modded-nanogpt's track 3,
        # entry 10 (May 2026, n=20), for its model of 162 M with queries, keys
        # and values in matrices of their own. It normalises the columns of
        # wide matrices; the paper, and this solver, always rows.
        "learning_rate": [0.035],
        "momentum": [0.95],
        "beta2": [0.95],
        "weight_decay": [0.025],
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

    # It took 3,250 of these steps, and normalises wide matrices by columns.
    published = {
        "modern": dict(
            source="modded-nanogpt, track 3, entry 10 (n=20)",
            learning_rate=0.035, momentum=0.95, beta2=0.95,
            weight_decay=0.025, ns_steps=12, embedding_learning_rate=0.3,
            head_learning_rate=1 / 320, gain_learning_rate=0.01,
            aux_learning_rate=0.01, aux_beta1=0.8, aux_beta2=0.95,
            aux_eps=1e-10, aux_weight_decay=0.0,
            num_steps=3300, warmup_steps=0,
            schedule="linear", cooldown=0.7, max_grad_norm=0.0,
        ),
    }

    def get_optimizer(self, roles):
        optimizer = NorMuon(
            [{"params": roles["hidden_matrices"], "use_muon": True}],
            lr=self.learning_rate, momentum=self.momentum, beta2=self.beta2,
            weight_decay=self.weight_decay, ns_steps=self.ns_steps,
            # See solvers/muon.py.
            ns_coeffs=(2.0, -1.5, 0.5),
        )
        return self.with_adamw(optimizer, roles)
