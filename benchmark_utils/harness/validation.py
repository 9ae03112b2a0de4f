"""Components that refuse parameters which make no sense.

Values are checked twice: when benchopt takes a command's choice of values, for
all components before the first of them reads data, and when it makes an
instance, which has them converted.
"""
import contextlib
import itertools

from benchmark_utils.console.errors import explain_command, readable
from benchmark_utils.harness.rules import convert, find_rule

# (names, what must hold of their values, what to say where it does not).
RELATIONS = [
    (("warmup_steps", "num_steps"), lambda few, all_: few <= all_,
     "warmup_steps={} is longer than the horizon, num_steps={}"),
    (("batch_size", "num_devices"), lambda rows, ranks: (
        ranks == "auto" or rows % ranks == 0
     ), "batch_size={} must be a multiple of num_devices={}"),
    (("min_length", "max_length"), lambda low, high: low <= high,
     "min_length={} is more than max_length={}"),
    (("num_successors", "vocab_size"), lambda few, all_: few <= all_ - 2,
     "num_successors={} is more than the words of vocab_size={}, two of which "
     "are the separator and the marker"),
]


def names_of(key):
    """The names in a key of a grid: of "a, b", a and b."""
    return [name.strip() for name in key.split(",")]


def combinations(grid):
    """Yield each combination of a grid's values, a dict by name.

    A grid is a dict as benchopt takes it: from a name to its values, or from
    several, separated by commas, to tuples of theirs. Later entries win.
    """
    entries = []
    for key, values in grid.items():
        names = names_of(key)
        if not isinstance(values, (list, tuple)):
            values = [values]
        if not values:
            raise ValueError(f"{key}=[] has no values: give at least one.")
        if len(names) == 1:
            values = [(value,) for value in values]
        for value in values:
            if not isinstance(value, (list, tuple)) or (
                len(value) != len(names)
            ):
                raise ValueError(
                    f"{key}={value!r} must be a tuple of {len(names)} values."
                )
        entries.append([
            dict(zip(names, value, strict=True)) for value in values
        ])
    for parts in itertools.product(*entries):
        yield {name: v for part in parts for name, v in part.items()}


def convert_options(options, defaults, rules):
    """Arguments of an optimizer, each by the rule of its name, where its
    default keeps it, or else of its default's kind: yes or no, a number, or
    several numbers.

    Parameters
    ----------
    options, defaults : dict
        By the argument's name.
    rules : dict of str to Rule
        Rules of some names, which go before those of all components.

    Returns
    -------
    options : dict

    Raises
    ------
    ValueError
        Naming the argument.
    """
    def converted(name, value, default):
        if value is None:
            return None
        if isinstance(default, tuple):
            if not isinstance(value, (list, tuple)) or (
                len(value) != len(default)
            ):
                raise ValueError(
                    f"{name}={value!r} must be {len(default)} values, as in "
                    f"its default {default!r}."
                )
            return tuple(
                converted(name, *pair) for pair in zip(
                    value, default, strict=True
                )
            )
        try:
            convert(name, default, [default], rules)
        except ValueError:
            # The package means another thing by this name.
            kind = find_rule("", default)
            if kind is None:
                return value
            return convert(name, value, [default], {name: kind})
        return convert(name, value, [default], rules)

    return {
        name: converted(name, value, defaults[name])
        for name, value in options.items()
    }


@contextlib.contextmanager
def naming(component):
    """Begin the message of a ``ValueError`` with a component's name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{component.name}: {error}") from None


class CheckedParameters:
    """Mixin of a benchopt component: it refuses parameters that make no
    sense, with one sentence, and converts what is written otherwise."""

    # The parameters that a component can't do without.
    required_parameters = ()
    # Rules of its own for some of its parameters, by their names.
    rules = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        explain_command()
        cls.parameters = Grid(cls, cls.parameters)

    @classmethod
    def check_parameters(cls, values):
        """One combination of parameters, each in its type.

        Parameters
        ----------
        values : dict

        Returns
        -------
        values : dict

        Raises
        ------
        ValueError
            If a value is not allowed, if one is missing, or if the class
            has an attribute of a parameter's name, which benchopt would use.
        """
        for name in values:
            if hasattr(cls, name):
                raise ValueError(
                    f"{cls.name} has {name} twice, as a parameter and as an "
                    "attribute of its class, which benchopt would use. Delete "
                    "the attribute."
                )
        missing = [
            name for name in cls.required_parameters
            if name not in values and not hasattr(cls, name)
        ]
        if missing:
            raise ValueError(
                f"{cls.name} lacks {', '.join(missing)}. Add to its "
                "parameters what every one has: "
                f"{', '.join(cls.required_parameters)}."
            )
        with naming(cls):
            defaults = list(combinations(dict(cls.parameters)))
            values = {
                name: convert(
                    name, value, [d.get(name) for d in defaults], cls.rules
                ) for name, value in values.items()
            }
            for names, holds, sentence in RELATIONS:
                if set(names) <= set(values):
                    related = [values[name] for name in names]
                    if not holds(*related):
                        raise ValueError(f"{sentence.format(*related)}.")
            cls.check_together(values)
        return values

    @classmethod
    def spread(cls, chosen):
        """A command's choice of values, a grid, as what the component's own
        grid is updated with."""
        return chosen

    @classmethod
    def check_together(cls, values):
        """Raise ``ValueError`` for parameters, each in its type, that don't
        fit each other."""

    @classmethod
    def check_there(cls, values):
        """Raise ``ValueError`` if what parameters name is not on this machine.

        It is called where a command chooses them, and not for an instance: a
        worker elsewhere may do without.
        """

    @readable
    def save_parameters(self, **parameters):
        super().save_parameters(**parameters)
        self._parameters = self.check_parameters(self._parameters)
        vars(self).update(self._parameters)


class Grid(dict):
    """The parameters of a component, checked when a command chooses values.

    For every component that a command names, benchopt copies this dict and
    updates the copy with the command's values, before it reads any data. An
    instance is only made when its turn has come: after the training of those
    before it.
    """

    def __init__(self, component, values):
        super().__init__(values)
        self.component = component

    def copy(self):
        return Grid(self.component, self)

    @readable
    def update(self, chosen):
        with naming(self.component):
            super().update(self.component.spread(chosen))
            choices = list(combinations(self))
        for values in choices:
            values = self.component.check_parameters(values)
            with naming(self.component):
                self.component.check_there(values)
