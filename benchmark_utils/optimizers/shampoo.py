"""Shampoo, with moving averages and the step length of Adam.

Gupta et al., "Shampoo: Preconditioned Stochastic Tensor Optimization" (2018):
the momentum M of a matrix is preconditioned as L^(-1/4) M R^(-1/4), where L
and R average G G^T and G^T G. As in Anil et al., "Scalable Second Order
Optimization for Deep Learning" (2020), the result is given the norm of
another method's update ("grafting"), here Adam's, and the roots are
recomputed every few steps.

pytorch-optimizer's ``Shampoo`` adds up G G^T without decay and keeps the
preconditioned gradient in place of the momentum; its ``ScalableShampoo`` does
not graft Adam.
"""
import collections

import torch

# Eigenvalues below this share of the largest are rounding in float32.
RELATIVE_DAMPING = 1e-6


class Shampoo(torch.optim.Optimizer):
    """Shampoo on matrices.

    Parameters
    ----------
    params : iterable of nn.Parameter, each a matrix
    lr : float
        Adam's learning rate; Adam's update sets the length of each step.
    betas : pair of float
        Rates of the averages of the gradient, and of its products and
        squares.
    weight_decay : float
        Decoupled weight decay, times the learning rate.
    precondition_frequency : int
        Number of steps from one computation of the roots to the next.
    eps : float
        Adam's.
    """

    def __init__(self, params, lr, betas=(0.9, 0.95), weight_decay=0.0,
                 precondition_frequency=5, eps=1e-8):
        super().__init__(params, dict(
            lr=lr, betas=betas, weight_decay=weight_decay,
            precondition_frequency=precondition_frequency, eps=eps,
        ))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                self._average(p, group)
            self._recompute_roots(params, group)
            for p in params:
                update = self._update(p, group)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * update)

    def _average(self, p, group):
        """Update the averages of one matrix."""
        state = self.state[p]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
            for side, size in zip(("left", "right"), p.shape, strict=True):
                state[side] = p.new_zeros(size, size)
                state[f"{side}_root"] = torch.eye(
                    size, dtype=p.dtype, device=p.device
                )
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(p.grad, 1 - beta1)
        state["exp_avg_sq"].lerp_(p.grad.square(), 1 - beta2)
        state["left"].lerp_(p.grad @ p.grad.T, 1 - beta2)
        state["right"].lerp_(p.grad.T @ p.grad, 1 - beta2)
        state["step"] += 1

    def _recompute_roots(self, params, group):
        """Recompute the roots that are due; those of one size together."""
        due = collections.defaultdict(list)
        for p in params:
            state = self.state[p]
            if (state["step"] - 1) % group["precondition_frequency"] == 0:
                for side in ("left", "right"):
                    due[len(state[side])].append(
                        (state[side], state[f"{side}_root"])
                    )
        for pairs in due.values():
            inverse_fourth_roots(*zip(*pairs, strict=True))

    def _update(self, p, group):
        """The preconditioned momentum of one matrix, as long as Adam's."""
        state = self.state[p]
        beta1, beta2 = group["betas"]
        variance = state["exp_avg_sq"] / (1 - beta2 ** state["step"])
        adam = state["exp_avg"] / (1 - beta1 ** state["step"]) / (
            variance.sqrt() + group["eps"]
        )
        update = (
            state["left_root"] @ state["exp_avg"] @ state["right_root"]
        )
        return update * (adam.norm() / update.norm().clamp(min=1e-30))


def inverse_fourth_roots(matrices, outs):
    """Write the inverse fourth roots of positive semi-definite matrices.

    All are decomposed in one call, which a GPU can work on in parallel. A
    matrix that isn't finite has no root, and its ``out`` stays as it is. So
    do all of them if the eigensolver doesn't converge.

    Parameters
    ----------
    matrices, outs : sequence of Tensor[size, size]
    """
    stack = torch.stack(matrices)
    size = stack.shape[-1]
    finite = stack.isfinite().flatten(1).all(1)[:, None, None]
    # The eigensolver would not always notice.
    eye = torch.eye(size, dtype=stack.dtype, device=stack.device)
    try:
        values, vectors = torch.linalg.eigh(torch.where(finite, stack, eye))
    except torch.linalg.LinAlgError:
        return
    damping = RELATIVE_DAMPING * values[:, -1:] + torch.finfo(stack.dtype).tiny
    powers = (values.clamp(min=0) + damping) ** -0.25
    for out, *parts in zip(outs, finite, powers, vectors, strict=True):
        is_finite, power, basis = parts
        out.copy_(torch.where(is_finite, (basis * power) @ basis.T, out))
