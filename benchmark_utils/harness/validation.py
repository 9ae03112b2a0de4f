"""Parameter validation for benchopt components.

Values are validated and converted when benchopt takes the values of a command,
for all components before the first of them reads data. An instance reuses the
converted values.
"""
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from benchmark_utils.console.errors import explain_command, readable
from benchmark_utils.harness.rules import Rule, convert, find_rule

# Parameters by name, or a grid of them.
Values = dict[str, Any]

# (names, condition on their values, message where it does not hold).
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


def names_of(key: str) -> list[str]:
    """Split a grid's key: of "a, b", a and b."""
    return [name.strip() for name in key.split(",")]


def combinations(grid: Values) -> Iterator[Values]:
    """Yield each combination of a grid's values, a dict by name.

    A grid is a dict as benchopt takes it: from a name to its values, or from
    several names, separated by commas, to tuples of values. Later entries win.
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


def combination_key(values: Values) -> str:
    """Text that tells combinations apart, types included; values need not be
    hashable."""
    return repr(sorted(values.items()))


def convert_options(
    options: Values, defaults: Values, rules: dict[str, Rule]
) -> Values:
    """Convert an optimizer's arguments by the rules of their names.

    Where an argument's default breaks that rule, or has none, its default's
    type decides: boolean, number, or several numbers. ``rules`` take
    precedence over the shared ones. Raises ``ValueError`` naming the argument.
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
            # The package gives this name another meaning.
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
    """Prefix the message of a ``ValueError`` with a component's name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{component.name}: {error}") from None


class CheckedParameters:
    """Mixin of a benchopt component whose parameters are validated.

    Each combination is converted once: when the command is parsed, or, where
    Python code gives other values, when the instance is made.
    """

    # Parameters that every component of this kind must declare.
    required_parameters: Sequence[str] = ()
    # The component's own rules, by the parameter's name.
    rules: dict[str, Rule] = {}
    parameters: dict[str, Any] = {}
    name: str
    # Combinations that were converted, by ``combination_key`` of the raw one.
    _converted: dict[str, Values] = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        explain_command()
        cls.parameters = Grid(cls, cls.parameters)
        cls._converted = {}

    @classmethod
    def check_parameters(cls, values: Values) -> Values:
        """Convert one combination of parameters, each to its type.

        Raises
        ------
        ValueError
            If a value is not allowed, if a parameter is missing, or if the
            class has an attribute of a parameter's name, which benchopt would
            use instead.
        """
        key = combination_key(values)
        if key in cls._converted:
            return dict(cls._converted[key])
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
        cls._converted[key] = cls.convert_parameters(values)
        return dict(cls._converted[key])

    @classmethod
    def convert_parameters(cls, values: Values) -> Values:
        """Convert a combination that was not converted before."""
        return cls.check_relations(cls.convert_values(values))

    @classmethod
    def convert_values(cls, values: Values) -> Values:
        declared = list(combinations(cls.parameters))
        with naming(cls):
            return {
                name: convert(
                    name, value, [one.get(name) for one in declared], cls.rules
                ) for name, value in values.items()
            }

    @classmethod
    def check_relations(cls, values: Values) -> Values:
        """Return converted values if they agree with each other."""
        with naming(cls):
            for names, holds, sentence in RELATIONS:
                if set(names) <= set(values):
                    related = [values[name] for name in names]
                    if not holds(*related):
                        raise ValueError(f"{sentence.format(*related)}.")
            cls.check_together(values)
        return values

    @classmethod
    def spread(cls, chosen: Values) -> Values:
        """Return what a command's grid replaces in the component's own."""
        return chosen

    @classmethod
    def check_together(cls, values: Values) -> None:
        """Raise ``ValueError`` if converted values contradict each other. May
        fill in values that are None."""

    @classmethod
    def check_there(cls, values: Values) -> None:
        """Raise ``ValueError`` if a file that parameters name is missing.

        It is called when the command is parsed, not for an instance: a worker
        on another machine may do without the file.
        """

    @readable
    def save_parameters(self, **parameters):
        """Set the attributes that benchopt sets, each in its type."""
        values = next(combinations(self.parameters)) | parameters
        self._parameters = self.check_parameters(values)
        vars(self).update(self._parameters)


class Grid(dict):
    """Parameter grid of a component, validated when the command is parsed.

    For every component that a command names, benchopt copies this dict and
    updates the copy with the command's values, before it reads any data. An
    instance is made only when its turn has come: after the training of those
    before it.
    """

    def __init__(self, component: type[CheckedParameters], values: Values):
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
