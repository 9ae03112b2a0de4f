"""Construct the optimizers of pytorch-optimizer from their names."""
import difflib
import inspect

# Kron needs opt_einsum, though the package doesn't require it: see
# solvers/psgd_kron.py.
import opt_einsum  # noqa: F401
import torch
from pytorch_optimizer import get_supported_optimizers, load_optimizer

from benchmark_utils.optimizers.groups import decay_groups

# Options that make weight decay decoupled, in the package and in torch.
DECOUPLED = ["weight_decouple", "decoupled_weight_decay"]
# Methods that are AdamW unless their groups have a "rank".
NEED_A_RANK = ["apollo", "fira", "galore"]


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


# What was found out about each choice of values: checking takes a second
# with some optimizers, and benchopt parses a command more than once.
_refusals: dict[str, str | None] = {}


def check_values(name, learning_rate, weight_decay, options):
    """Refuse what an optimizer can't be made with, or what has no effect.

    The arguments are those of ``make_optimizer``.

    Raises
    ------
    ValueError
        In the optimizer's own words where it raises an error.
    """
    choice = repr((name, learning_rate, weight_decay, options))
    if choice not in _refusals:
        _refusals[choice] = find_refusal(
            name, learning_rate, weight_decay, options
        )
    if _refusals[choice]:
        raise ValueError(f"optimizer={name} {_refusals[choice]}")


def find_refusal(name, learning_rate, weight_decay, options):
    """Return why an optimizer is refused, None if it isn't: what
    ``check_values`` says."""
    if str(name).lower() in NEED_A_RANK:
        return (
            "is AdamW unless its matrices have a group with a rank, which a "
            "name can't give: write a solver file (docs/add_a_solver.rst)."
        )

    def steps(learning_rate, weight_decay, num_steps=12):
        arguments = name, learning_rate, weight_decay, options, num_steps
        try:
            # Steps that begin tiny are lost in float32.
            return toy_steps(*arguments, dtype=torch.float64)
        except RuntimeError:
            return toy_steps(*arguments, dtype=torch.float32)

    problem = f"can't be made with options={options}"
    try:
        steps(learning_rate, weight_decay, num_steps=0)
        problem = "can't take a step in this benchmark"
        first = steps(learning_rate, weight_decay)
        twice = steps(2 * learning_rate, weight_decay)
        without = steps(learning_rate, 0.0) if weight_decay else None
    except Exception as error:
        return f"{problem}: {type(error).__name__}: {error}"
    for parameter, value, other in [
        ("learning_rate", learning_rate, twice),
        ("weight_decay", weight_decay, without),
    ]:
        if learning_rate and other is not None and torch.equal(first, other):
            return (
                f"ignores {parameter}={value:g} with options={options}: "
                "another value trains the same weights. Its options may "
                "change that."
            )
    return None


def toy_steps(name, learning_rate, weight_decay, options, num_steps, dtype):
    """Take steps on small parameters of each role; return the weights.

    Some methods begin to move only after ten steps.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        roles = {
            role: [torch.nn.Parameter(torch.rand(shape, dtype=dtype) + 0.5)]
            for role, shape in [
                ("hidden_matrices", (8, 8)), ("embeddings", (8, 8)),
                ("gains_and_biases", (8,)),
            ]
        } | {"head": []}
        optimizer = make_optimizer(
            name, roles, learning_rate, weight_decay, options
        )
        parameters = [p for role in roles.values() for p in role]
        for _ in range(num_steps):
            for p in parameters:
                p.grad = torch.randn_like(p)
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in parameters])


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
    """Complete the options of an optimizer, and refuse those it does not have:
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
    return {flag: True for flag in DECOUPLED if flag in known} | options
