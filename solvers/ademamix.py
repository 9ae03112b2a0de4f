"""AdEMAMix: Adam with a second, slow average of the gradients.

Pagliardini et al., "The AdEMAMix Optimizer: Better, Faster, Older" (2024).
"""
from pytorch_optimizer import AdEMAMix

from benchmark_utils.harness.rules import Rule, number
from benchmark_utils.optimizers.groups import decay_groups
from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """AdEMAMix; weight decay on matrices and embeddings only."""

    name = "AdEMAMix"
    requirements = ["pip::pytorch-optimizer~=4.1.0"]

    parameters = {
        # AdamW's rate and decay (solvers/adamw.py): Semenov et al.
        # ("Benchmarking Optimizers for Large Language Model Pretraining",
        # 2025) took AdamW's, for their Llama of 124 M on FineWeb.
        "learning_rate": [6e-4],
        # Semenov et al., the same model: averages, and their warm-up over the
        # whole horizon.
        "beta1": [0.9],
        "beta2": [0.999],
        "beta3": [0.999],
        "alpha": [8.0],
        "weight_decay": [0.1],
        "num_steps, warmup_steps": [(19485, 700)],
        "schedule, cooldown": [("cosine", 1.0)],
        "max_grad_norm": [1.0],
    }

    # Half-lives are interpolated, and 0 has none.
    rules = dict.fromkeys(
        ["beta1", "beta3"], Rule(number, above=0, below=1)
    )

    def get_optimizer(self, roles):
        return AdEMAMix(
            decay_groups(roles, self.weight_decay), lr=self.learning_rate,
            betas=(self.beta1, self.beta2, self.beta3), alpha=self.alpha,
            t_alpha_beta3=self.num_steps, weight_decouple=True,
        )
