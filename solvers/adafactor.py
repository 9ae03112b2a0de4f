"""Adafactor.

Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory
Cost" (2018).
"""
import torch

from benchmark_utils.optimizers.groups import decay_groups
from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    """Adafactor; steps are relative to the size of the parameters."""

    name = "Adafactor"

    parameters = {
        # Rate times the RMS of the parameter: the peak of T5 (Raffel et al.,
        # 2020) and PaLM (Chowdhery et al., 2022). Marek et al. ("Small Batch
        # Size Training for Language Models", 2025) found half of it for GPT-2
        # of this size on FineWeb, with one row a step. torch never takes more
        # than 1/sqrt(step): with this peak and a cool-down, that changes
        # nothing.
        "learning_rate": [1e-2],
        "beta2_decay": [-0.8],
        "clipping_threshold": [1.0],
        "weight_decay": [0.0],
        "num_steps, warmup_steps": [(19485, 700)],
        "schedule, cooldown": [("cosine", 1.0)],
        "max_grad_norm": [1.0],
    }

    def get_optimizer(self, roles):
        return torch.optim.Adafactor(
            decay_groups(roles, self.weight_decay), lr=self.learning_rate,
            beta2_decay=self.beta2_decay, d=self.clipping_threshold,
            # The first is added to squares of gradients. torch's default is
            # larger than those of a model of 124 M parameters; the paper's,
            # 1e-30, is lost in float32.
            eps=(1e-15, 1e-3),
        )
