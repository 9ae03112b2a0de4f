"""Shampoo, with moving averages and the step length of Adam.

Gupta et al., "Shampoo: Preconditioned Stochastic Tensor Optimization" (2018):
the momentum M of a matrix is preconditioned as L^(-1/4) M R^(-1/4), where L
and R average G G^T and G^T G. As in Anil et al., "Scalable Second Order
Optimization for Deep Learning" (2020), the result is given the norm of
another method's update ("grafting"), here Adam's, and the roots are
recomputed every few steps.

pytorch-optimizer's ``Shampoo`` adds up G G^T for ever and keeps the
preconditioned gradient in place of the momentum; its ``ScalableShampoo`` does
not graft Adam.
"""
import torch

# Eigenvalues below this share of the largest are rounding in float32.
RELATIVE_DAMPING = 1e-6


class Shampoo(torch.optim.Optimizer):
    """Shampoo on matrices.

    Parameters
    ----------
    params : iterable of nn.Parameter, each a matrix
    lr : float
        Of Adam, which gives each step its length.
    betas : pair of float
        Averages of the gradient, and of its products and squares.
    weight_decay : float
        Decoupled, times the learning rate.
    precondition_frequency : int
        Steps from one computation of the roots to the next.
    eps : float
        Of Adam.
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
            for p in group["params"]:
                update = self._update(p, p.grad, group)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * update)

    def _update(self, p, grad, group):
        state = self.state[p]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
            for side, size in zip(("left", "right"), p.shape):
                state[side] = p.new_zeros(size, size)
                state[f"{side}_root"] = torch.eye(
                    size, dtype=p.dtype, device=p.device
                )
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].lerp_(grad.square(), 1 - beta2)
        state["left"].lerp_(grad @ grad.T, 1 - beta2)
        state["right"].lerp_(grad.T @ grad, 1 - beta2)
        if state["step"] % group["precondition_frequency"] == 0:
            for side in ("left", "right"):
                inverse_fourth_root(state[side], out=state[f"{side}_root"])
        state["step"] += 1
        variance = state["exp_avg_sq"] / (1 - beta2 ** state["step"])
        adam = state["exp_avg"] / (1 - beta1 ** state["step"]) / (
            variance.sqrt() + group["eps"]
        )
        update = (
            state["left_root"] @ state["exp_avg"] @ state["right_root"]
        )
        return update * (adam.norm() / update.norm().clamp(min=1e-30))


def inverse_fourth_root(matrix, out):
    """Write the inverse fourth root of a positive semi-definite matrix. Of
    one that isn't finite there is none, and ``out`` stays as it is. The
    eigensolver would not always notice, and waits for a GPU anyway."""
    if not matrix.isfinite().all():
        return
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        return
    damping = RELATIVE_DAMPING * values[-1] + torch.finfo(matrix.dtype).tiny
    powers = (values.clamp(min=0) + damping) ** -0.25
    torch.mm(vectors * powers, vectors.T, out=out)
