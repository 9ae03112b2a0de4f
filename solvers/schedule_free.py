"""Schedule-free AdamW.

Defazio et al., "The Road Less Scheduled" (2024). The gradient is taken between
the trained weights and their average; the average is evaluated.
"""
from schedulefree import AdamWScheduleFree

from benchmark_utils.harness.rules import Rule, number
from benchmark_utils.optimizers.groups import decay_groups
from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """Schedule-free AdamW; it has a warm-up, and no cool-down."""

    name = "Schedule-free AdamW"
    requirements = ["pip::schedulefree~=1.4.1"]

    parameters = {
        # AdamW's rate and decay (solvers/adamw.py): Semenov et al.
        # ("Benchmarking Optimizers for Large Language Model Pretraining",
        # 2025) took AdamW's, for their Llama of 124 M on FineWeb.
        "learning_rate": [6e-4],
        # Semenov et al., the same model.
        "beta1": [0.9],
        "beta2": [0.9999],
        "weight_decay": [0.1],
        "num_steps, warmup_steps": [(19485, 700)],
        "schedule, cooldown": [("constant", 1.0)],
        "max_grad_norm": [1.0],
    }

    # The weights that are evaluated follow from a division by it.
    rules = {"beta1": Rule(number, above=0, below=1)}

    def get_optimizer(self, roles):
        return AdamWScheduleFree(
            decay_groups(roles, self.weight_decay), lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
        )
