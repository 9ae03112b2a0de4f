"""SOAP that starts with the first gradient that is not zero.

Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam" (2024), as in
the package pytorch-optimizer.
"""
import pytorch_optimizer


class SOAP(pytorch_optimizer.SOAP):
    """SOAP in which each matrix starts with its first gradient that isn't
    zero. Behind a head or a projection that starts at zero, the first ones
    are, and have no eigenbasis.

    Parameters
    ----------
    matrices : list of nn.Parameter
    **options
        Those of ``pytorch_optimizer.SOAP``.
    """

    def __init__(self, matrices, **options):
        # A group each: its count of steps begins with the matrix's own.
        super().__init__([{"params": [p]} for p in matrices], **options)

    def step(self, closure=None):
        groups = self.param_groups
        self.param_groups = [
            group for group in groups for p in group["params"]
            if p in self.state or p.grad is not None and p.grad.any()
        ]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups
