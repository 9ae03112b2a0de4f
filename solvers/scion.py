"""Scion: steps to the corners of norm balls, one norm for each role.

Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs"
(2025), with the initialisation of the benchmark.
"""
from pytorch_optimizer import SCION
from pytorch_optimizer.optimizer.scion import LMONorm

from benchmark_utils.harness.rules import Rule, number
from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """Spectral norm for hidden matrices, largest entry for embeddings."""

    name = "Scion"
    requirements = ["pip::pytorch-optimizer~=4.1.0"]
    update_sharding = "orthogonalisation"

    parameters = {
        # All but the radius of vectors: the authors' script for modded-nanogpt
        # (https://github.com/LIONS-EPFL/scion), for its model of 124 M without
        # gains and biases, with queries, keys and values in matrices of their
        # own.
        "learning_rate": [3.6e-4],
        # Weight of the new gradient in the average.
        "momentum": [0.1],
        "hidden_radius": [50.0],
        "embedding_radius": [3000.0],
        # Steps of gains and biases have this RMS times the learning rate, and
        # these are not shrunk.
        "vector_radius": [1.0],
        "num_steps, warmup_steps": [(5100, 0)],
        "schedule, cooldown": [("linear", 0.284)],
        "max_grad_norm": [0.0],
    }

    # The average may be the new gradient alone, and must not be without it.
    rules = {"momentum": Rule(number, above=0, high=1)}

    # Queries, keys and values are matrices of their own there, as here with
    # fused_qkv=False. That model has no gains and biases.
    published = {
        "rotary": dict(
            source="github.com/tomMoral/benchmark_nanogpt, commit 1bb919b, "
            "bench_configs/nanogpt_8gpu.yaml (n=1)",
            learning_rate=3.6e-4, momentum=0.1, hidden_radius=50.0,
            embedding_radius=3000.0, vector_radius=1.0,
            num_steps=5700, warmup_steps=0,
            schedule="linear", cooldown=0.5, max_grad_norm=0.0,
        ),
    }

    def get_optimizer(self, roles):
        def group(parameters, norm, radius, constraint=True):
            return {"params": parameters, "norm_type": norm,
                    "scale": radius, "constraint": constraint}

        return SCION([
            group(roles["hidden_matrices"], LMONorm.SPECTRAL,
                  self.hidden_radius),
            group(roles["embeddings"] + roles["head"], LMONorm.SIGN,
                  self.embedding_radius),
            group(roles["gains_and_biases"], LMONorm.BIAS,
                  self.vector_radius, constraint=False),
        ], lr=self.learning_rate, momentum=self.momentum)
