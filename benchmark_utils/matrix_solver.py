"""The base class of methods for the hidden matrices.

AdamW takes the rest: embeddings, head, gains and biases, each of which can
have a learning rate of its own.
"""
import torch

from benchmark_utils.optimizers.combined import CombinedOptimizer
from benchmark_utils.optimizers.groups import rest_groups
from benchmark_utils.solver import TrainingSolver


class MatrixSolver(TrainingSolver):
    """A solver whose ``get_optimizer`` ends in ``with_adamw``.

    Its parameters include ``aux_learning_rate``, ``aux_beta1``, ``aux_beta2``
    and ``aux_weight_decay``, those of AdamW. Every such solver also takes

    - ``aux_eps``: None is 1e-8;
    - ``embedding_learning_rate``, ``head_learning_rate``,
      ``gain_learning_rate``: None is ``aux_learning_rate``. The last one is
      of gains and biases;
    - ``gain_weight_decay``: None is 0.
    """

    optional_parameters = TrainingSolver.optional_parameters + (
        "aux_eps", "embedding_learning_rate", "head_learning_rate",
        "gain_learning_rate", "gain_weight_decay",
    )

    def with_adamw(self, optimizer, roles, **own):
        """Add AdamW for all that an optimizer of the hidden matrices leaves.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            It holds ``roles["hidden_matrices"]``.
        roles : dict of str to list of nn.Parameter
        **own : float
            What ``learning_rate``, ``beta1``, ``beta2``, ``eps`` or
            ``weight_decay`` are without an ``aux_`` parameter of the name.

        Returns
        -------
        optimizer : CombinedOptimizer
        """
        own = {"eps": 1e-8} | own

        def aux(name):
            value = getattr(self, f"aux_{name}", None)
            if value is None and name not in own:
                raise ValueError(
                    f"{self.name} lacks aux_{name}, a parameter of AdamW's "
                    "part."
                )
            return own[name] if value is None else value

        groups = rest_groups(
            roles,
            learning_rates={
                "embeddings": self.embedding_learning_rate,
                "head": self.head_learning_rate,
                "gains_and_biases": self.gain_learning_rate,
            },
            weight_decay=aux("weight_decay"),
            gain_weight_decay=self.gain_weight_decay or 0.0,
        )
        return CombinedOptimizer(optimizer, torch.optim.AdamW(
            groups, lr=aux("learning_rate"), eps=aux("eps"),
            betas=(aux("beta1"), aux("beta2")), fused=True,
        ))
