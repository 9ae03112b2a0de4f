"""AdamW; by itself with the recipe of llm.c's GPT-2 reproduction.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019).
"""
import torch

from benchmark_utils.solver import MatrixSolver


class Solver(MatrixSolver):
    """AdamW; weight decay on matrices and embeddings only."""

    name = "AdamW"

    parameters = {
        # All settings but the horizon: llm.c's run of its GPT-2 124M on
        # FineWeb (scripts/run_gpt2_124M.sh, one seed).
        "learning_rate": [6e-4],
        "beta1": [0.9],
        "beta2": [0.95],
        "eps": [1e-8],
        "weight_decay": [0.1],
        # Those of embeddings, head, gains and biases, where they differ.
        "aux_beta1": [None],
        "aux_beta2": [None],
        "aux_weight_decay": [None],
        # All steps that 103 FineWeb shards hold; llm.c's run took 19,560.
        "num_steps, warmup_steps": [(19485, 700)],
        "schedule, cooldown": [("cosine", 1.0)],
        "max_grad_norm": [1.0],
    }

    # On `rotary`: the upstream benchmark's tuned run, of 8 GPUs; the averages
    # are those of an older version of it. On `modern`: the entry states no
    # schedule, which is that of the track's script.
    published = {
        "gpt2": dict(
            source="llm.c, scripts/run_gpt2_124M.sh (n=1)",
            learning_rate=6e-4, beta1=0.9, beta2=0.95, eps=1e-8,
            weight_decay=0.1, num_steps=19485, warmup_steps=700,
            schedule="cosine", cooldown=1.0, max_grad_norm=1.0,
        ),
        "rotary": dict(
            source="github.com/tomMoral/benchmark_nanogpt, commit 1bb919b, "
            "bench_configs/nanogpt_8gpu.yaml (n=1)",
            learning_rate=1.8e-3, beta1=0.9, beta2=0.98, eps=1e-8,
            weight_decay=0.1, num_steps=8600, warmup_steps=256,
            schedule="linear", cooldown=0.5, max_grad_norm=0.0,
        ),
        "modern": dict(
            source="modded-nanogpt, track 3, pull request 353 (n=10)",
            learning_rate=1e-3, beta1=0.9, beta2=0.9, eps=1e-10,
            weight_decay=1.0, embedding_learning_rate=0.7,
            head_learning_rate=0.004, gain_learning_rate=0.015,
            aux_beta1=0.8, aux_beta2=0.95, aux_eps=1e-10,
            aux_weight_decay=0.002, gain_weight_decay=0.002,
            num_steps=4950, warmup_steps=100,
            schedule="linear", cooldown=0.7, max_grad_norm=0.0,
        ),
    }

    def get_optimizer(self, roles):
        matrices = torch.optim.AdamW(
            roles["hidden_matrices"], lr=self.learning_rate, eps=self.eps,
            betas=(self.beta1, self.beta2), weight_decay=self.weight_decay,
            fused=True,
        )
        return self.with_adamw(
            matrices, roles, learning_rate=self.learning_rate,
            beta1=self.beta1, beta2=self.beta2, eps=self.eps,
            weight_decay=self.weight_decay,
        )
