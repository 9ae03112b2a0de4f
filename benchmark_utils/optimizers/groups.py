"""The usual split of the parameters into groups."""


def decay_groups(roles, weight_decay):
    """Weight decay on matrices and embeddings, none on gains and biases.

    Parameters
    ----------
    roles : dict of str to list of nn.Parameter
        As ``get_optimizer`` receives them.
    weight_decay : float

    Returns
    -------
    groups : list of dict, for a ``torch.optim.Optimizer``
    """
    decayed = roles["hidden_matrices"] + roles["embeddings"] + roles["head"]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": roles["gains_and_biases"], "weight_decay": 0.0},
    ]
