"""Parameters, gradients and steps on which a solver's optimizer is tested."""
import torch

from benchmark_utils.optimizers.interface import (
    check_optimizer,
    copy_rate,
    parts_of,
    set_rate,
)

# Wide, tall and square matrices, and vectors.
SHAPES = {
    "hidden_matrices": [(6, 10), (10, 6), (8, 8)],
    "embeddings": [(12, 8), (5, 8)],
    "head": [(7, 8)],
    "gains_and_biases": [(8,), (5,)],
}
# The learning rate of each step, as a factor: a schedule is at work.
FACTORS = [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]


class Toy:
    """A solver's optimizer on parameters of all roles, with given gradients.

    Parameters
    ----------
    solver : TrainingSolver
        Whose ``get_optimizer`` is tested.
    shapes : dict of str to list of tuple
    dtype : torch.dtype
    scale : float
        RMS of the gradients.
    """

    def __init__(self, solver, shapes=SHAPES, dtype=torch.float64, scale=1.0):
        generator = torch.Generator().manual_seed(0)
        self.shapes, self.dtype, self.scale = shapes, dtype, scale
        self.roles = {
            role: [
                torch.nn.Parameter(0.5 * torch.randn(
                    shape, generator=generator, dtype=torch.float64
                ).to(dtype))
                for shape in shapes[role]
            ]
            for role in shapes
        }
        self.parameters = [p for role in self.roles.values() for p in role]
        self.initial = self.weights()
        torch.manual_seed(0)
        self.solver = solver
        self.optimizer = solver.get_optimizer(self.roles)
        check_optimizer(self.optimizer)
        for part in parts_of(self.optimizer):
            if hasattr(part, "train"):
                part.train()
        self.rates = [
            copy_rate(group["lr"]) for group in self.optimizer.param_groups
        ]

    def weights(self):
        return [p.detach().clone() for p in self.parameters]

    def gradients(self, step):
        """The gradients of one step, one per parameter."""
        generator = torch.Generator().manual_seed(1 + step)
        return [
            self.scale * torch.randn(
                p.shape, generator=generator, dtype=torch.float64
            ).to(self.dtype)
            for p in self.parameters
        ]

    def step(self, step, factor=None, gradients=None, parts=1):
        """One optimizer step; the gradients can come in equal parts, each of
        a backward pass."""
        gradients = gradients or self.gradients(step)
        factor = FACTORS[step % len(FACTORS)] if factor is None else factor
        for group, rate in zip(
            self.optimizer.param_groups, self.rates, strict=True
        ):
            set_rate(group, rate * factor)
        for _ in range(parts):
            sum(
                (p * (gradient / parts)).sum()
                for p, gradient in zip(self.parameters, gradients, strict=True)
            ).backward()
        torch.manual_seed(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def run(self, num_steps, start=0, **options):
        for step in range(start, start + num_steps):
            self.step(step, **options)
        return self


def distance(first, second):
    """Largest norm of a difference, over a list of tensors."""
    return max((a - b).norm().item() for a, b in zip(
        first, second, strict=True
    ))


def relative_error(weights, expected, initial):
    """The error of each parameter, relative to how far it was to move."""
    return [
        ((w - e).norm() / (e - i).norm()).item()
        for w, e, i in zip(weights, expected, initial, strict=True)
    ]
