"""AdamW with the recipe of llm.c's GPT-2 reproduction.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019). The
settings are those of llm.c's ``scripts/run_gpt2_124M.sh``.
"""
import torch

from benchmark_utils.optimizers.groups import decay_groups
from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """AdamW; weight decay on matrices and embeddings only."""

    name = "AdamW"

    parameters = {
        # All settings but the horizon: llm.c's run of its GPT-2 124M on
        # FineWeb (one seed).
        "learning_rate": [6e-4],
        "beta1": [0.9],
        "beta2": [0.95],
        "eps": [1e-8],
        "weight_decay": [0.1],
        # All steps that 103 FineWeb shards hold; llm.c's run took 19,560.
        "num_steps, warmup_steps": [(19485, 700)],
        "schedule, cooldown": [("cosine", 1.0)],
        "max_grad_norm": [1.0],
    }

    def get_optimizer(self, roles):
        return torch.optim.AdamW(
            decay_groups(roles, self.weight_decay), lr=self.learning_rate,
            betas=(self.beta1, self.beta2), eps=self.eps, fused=True,
        )
