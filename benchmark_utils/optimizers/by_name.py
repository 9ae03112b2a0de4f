"""Construct the optimizers of pytorch-optimizer from their names."""
import difflib
import inspect

# Kron needs opt_einsum, though the package doesn't require it: see
# solvers/psgd_kron.py.
import opt_einsum  # noqa: F401
import torch
from pytorch_optimizer import get_supported_optimizers, load_optimizer

from benchmark_utils.optimizers.groups import decay_groups


def make_optimizer(name, roles, learning_rate, weight_decay, options):
    """One optimizer of the package on all parameters.

    Parameters
    ----------
    name : str
        As the package registers it.
    roles : dict of str to list of nn.Parameter
    learning_rate : float
    weight_decay : float
        Decay of matrices and embeddings; decoupled where the optimizer can do
        that.
    options : dict or None
        Further arguments of its constructor.

    Returns
    -------
    optimizer : torch.optim.Optimizer

    Raises
    ------
    ValueError
        If there is no such optimizer, or it has no such option.
    """
    optimizer_class = find_optimizer(name)
    options = check_options(optimizer_class, weight_decay, options or {})
    # Relatives of Muon ask which group is theirs; the others don't mind.
    matrices = {"hidden_matrices": roles["hidden_matrices"]}
    rest = roles | {"hidden_matrices": []}
    empty = dict.fromkeys(roles, [])
    groups = [
        group | {"use_muon": use_muon}
        for part, use_muon in [(empty | matrices, True), (rest, False)]
        for group in decay_groups(part, weight_decay)
    ]
    return optimizer_class(groups, lr=learning_rate, **options)


def check_values(name, learning_rate, weight_decay, options):
    """Refuse what an optimizer's constructor refuses: arguments as those of
    ``make_optimizer``.

    Raises
    ------
    ValueError
        With the constructor's own words.
    """
    roles = {
        role: [torch.nn.Parameter(torch.zeros(shape))] for role, shape in
        [("hidden_matrices", (4, 4)), ("embeddings", (4, 4)),
         ("gains_and_biases", (4,))]
    } | {"head": []}
    try:
        make_optimizer(name, roles, learning_rate, weight_decay, options)
    except Exception as error:
        raise ValueError(
            f"optimizer={name} can't be made with options={options}: "
            f"{type(error).__name__}: {error}"
        ) from error


def find_optimizer(name):
    """The class that the package registers under a name."""
    known = get_supported_optimizers()
    if str(name).lower() not in known:
        close = difflib.get_close_matches(str(name).lower(), known, 5, 0.5)
        raise ValueError(
            f"optimizer={name!r} is none of pytorch-optimizer's {len(known)}."
            f" Close to it: {', '.join(close) or 'none'}."
        )
    return load_optimizer(name)


def known_options(optimizer_class):
    """Arguments of an optimizer's constructor, with their defaults: dict."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(
            optimizer_class
        ).parameters.items()
        if name not in ("params", "lr")
        and parameter.kind is not parameter.VAR_KEYWORD
    }


def check_options(optimizer_class, weight_decay, options):
    """Complete the options of an optimizer, and refuse those it hasn't:
    many of the constructors take any keyword, and ignore a misspelt one."""
    name = optimizer_class.__name__
    known = known_options(optimizer_class)
    if not isinstance(options, dict):
        raise ValueError(
            f"options={options!r} must be names with values: {{eps:1e-6}}."
        )
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"{name} has no option {', '.join(unknown)}. It has "
            f"{', '.join(known)}."
        )
    if "weight_decay" in options:
        raise ValueError("weight_decay is a parameter; not one of options.")
    if weight_decay and "weight_decay" not in known:
        raise ValueError(f"{name} has no weight decay; set weight_decay=0.")
    if "weight_decouple" in known:
        return {"weight_decouple": True} | options
    return options
