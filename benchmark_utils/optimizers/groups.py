"""Parameter groups of an optimizer: built, checked and described."""


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
        None of them empty: roles without parameters give no group.
    """
    decayed = roles["hidden_matrices"] + roles["embeddings"] + roles["head"]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": roles["gains_and_biases"], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def rest_groups(roles, learning_rates, weight_decay, gain_weight_decay):
    """A group for each role but the hidden matrices.

    Parameters
    ----------
    roles : dict of str to list of nn.Parameter
        As ``get_optimizer`` receives them.
    learning_rates : dict of str to float or None
        Learning rate of each role; None leaves it to the optimizer.
    weight_decay : float
        Decay of embeddings and head.
    gain_weight_decay : float
        Decay of gains and biases.

    Returns
    -------
    groups : list of dict, for a ``torch.optim.Optimizer``
        None of them empty.
    """
    groups = []
    for role, rate in learning_rates.items():
        decay = gain_weight_decay if role == "gains_and_biases" else (
            weight_decay
        )
        group = {"params": roles[role], "weight_decay": decay}
        if rate is not None:
            group["lr"] = rate
        if roles[role]:
            groups.append(group)
    return groups


def check_coverage(optimizer, model):
    """Raise ``ValueError`` unless the optimizer's groups hold every parameter
    of the model exactly once, and all are trained."""
    frozen = [
        name for name, p in model.named_parameters() if not p.requires_grad
    ]
    if frozen:
        raise ValueError(
            "Every parameter of the model is trained, but get_optimizer froze "
            f"{', '.join(frozen[:5])}{' ...' * (len(frozen) > 5)}."
        )
    names = {id(p): name for name, p in model.named_parameters()}
    counts = dict.fromkeys(names, 0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise ValueError(
                    "The optimizer holds a tensor of shape "
                    f"{tuple(parameter.shape)} that is not a parameter of the "
                    "model."
                )
            counts[id(parameter)] += 1
    wrong = [names[key] for key, count in counts.items() if count != 1]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            "Each parameter must be in exactly one group of the optimizer; "
            f"these are in none or several: {', '.join(wrong[:5])}{more}."
        )


def describe_groups(optimizer, roles):
    """One line: the optimizer and the number of parameters by role."""
    counts = ", ".join(
        f"{sum(p.numel() for p in parameters):,} in {role}"
        for role, parameters in roles.items() if parameters
    )
    names = dict.fromkeys(
        type(one).__name__
        for one in getattr(optimizer, "optimizers", [optimizer])
    )
    return f"{' and '.join(names)} on {counts}"
