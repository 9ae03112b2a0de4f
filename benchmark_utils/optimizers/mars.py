"""MARS: Adam on gradients corrected by their last change.

Yuan et al., "MARS: Unleashing the Power of Variance Reduction for Training
Large Models" (2024), MARS-AdamW in the approximate form that needs one
gradient a step, as in the authors' code (https://github.com/AGI-Arena/MARS).

pytorch-optimizer's ``MARS`` adds 1e-15 under the root of the second moment and
divides its epsilon by the bias correction: at the gradients of GPT-2 124M,
whose RMS is 3e-5, that is another method.
"""
import torch


class MARS(torch.optim.Optimizer):
    """MARS-AdamW.

    Parameters
    ----------
    params : iterable of nn.Parameter, or of dict
    lr : float
    betas : pair of float
        Rates of the averages of the corrected gradient and of its square.
    gamma : float
        Share of the correction; at 0, and for gradients of a norm below 1,
        MARS is AdamW.
    weight_decay : float
        Decoupled weight decay, times the learning rate.
    eps : float
        Term added to the root of the second moment, after its bias is
        corrected.
    """

    def __init__(self, params, lr, betas=(0.95, 0.99), gamma=0.025,
                 weight_decay=0.0, eps=1e-8):
        super().__init__(params, dict(
            lr=lr, betas=betas, gamma=gamma, weight_decay=weight_decay,
            eps=eps,
        ))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    for name in ("exp_avg", "exp_avg_sq", "last_grad"):
                        state[name] = torch.zeros_like(p)
                state["step"] += 1
                change = p.grad - state["last_grad"]
                corrected = p.grad + group["gamma"] * beta1 / (
                    1 - beta1) * change
                corrected /= corrected.norm().clamp(min=1)
                state["exp_avg"].lerp_(corrected, 1 - beta1)
                state["exp_avg_sq"].lerp_(corrected.square(), 1 - beta2)
                state["last_grad"].copy_(p.grad)
                variance = state["exp_avg_sq"] / (1 - beta2 ** state["step"])
                mean = state["exp_avg"] / (1 - beta1 ** state["step"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * mean / (variance.sqrt() + group["eps"]))
