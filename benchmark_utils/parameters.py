"""Parameters of the benchmark's components: their types and ranges.

``RULES`` declares what the objective, the datasets and the training loop take;
``PATTERNS`` what solvers take under the names that are standard in the field.
A parameter of another name must be of its default's kind: yes or no, or a
number. What is written as a number (``"1e-3"``, YAML's reading of 1e-3) or as
yes or no (``"false"``) is one. None is allowed where a component declares it.

Values are checked twice: when benchopt takes a command's choice of values, for
all components before the first of them reads data, and when it makes an
instance, which has them converted.
"""
import itertools
import math
import numbers
import re
from collections.abc import Callable
from dataclasses import dataclass

from benchmark_utils.data.tokenizers import SEPARATORS
from benchmark_utils.errors import readable
from benchmark_utils.training.schedules import SCHEDULES

WORDS = {
    "true": True, "yes": True, "on": True,
    "false": False, "no": False, "off": False,
}


def real(value):
    """A finite int or float; an int stays one."""
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError
    value = int(value) if isinstance(value, numbers.Integral) else float(value)
    if not math.isfinite(value):
        raise ValueError
    return value


def number(value):
    return float(real(value))


def whole(value):
    if real(value) != int(real(value)):
        raise ValueError
    return int(real(value))


def yes_no(value):
    if isinstance(value, str):
        value = WORDS.get(value.lower())
    if not isinstance(value, bool):
        raise ValueError
    return value


def text(value):
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def steps_or_minutes(value):
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?min", value):
        return value
    if whole(value) < 0:
        raise ValueError
    return whole(value)


TITLES = {
    steps_or_minutes: "a number of steps, minutes such as '5min'",
    real: "a number", number: "a number", whole: "a whole number",
    yes_no: "True or False", text: "a text",
}


@dataclass(frozen=True)
class Rule:
    """The values that a parameter may have.

    Attributes
    ----------
    kind : function or None
        From a value to the same of one type; raises ``ValueError`` where it
        is none. None: only the words.
    low, high : float
        Bounds that are allowed themselves.
    above, below : float
        Bounds that are not.
    words : tuple of str
        What is allowed besides.
    pattern : str
        A regular expression that a text must match as a whole.
    hint : str
        What to tell who wrote something else.
    """

    kind: Callable | None = None
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    words: tuple = ()
    pattern: str = ".*"
    hint: str = ""

    def convert(self, value):
        """The value in its type; ``ValueError`` if it is not allowed."""
        if isinstance(value, str) and value in self.words:
            return value
        if self.kind is None:
            raise ValueError
        value = self.kind(value)
        if isinstance(value, str):
            allowed = re.fullmatch(self.pattern, value)
        else:
            allowed = (
                self.low <= value <= self.high
                and self.above < value < self.below
            )
        if not allowed:
            raise ValueError
        return value

    def __str__(self):
        kind = TITLES.get(self.kind, "")
        if self.high < math.inf:
            kind += f" from {self.low:g} to {self.high:g}"
        elif self.below < math.inf:
            kind += f" from {self.low:g} to below {self.below:g}"
        elif self.above > -math.inf:
            kind += f" above {self.above:g}"
        elif self.low > -math.inf:
            kind += f", at least {self.low:g}"
        if self.words:
            names = ", ".join(map(repr, self.words))
            kind += f", or {names}" if kind else f"one of {names}"
        return kind + self.hint


COUNT = Rule(whole, low=1)
STEPS = Rule(whole, low=0)
NOT_NEGATIVE = Rule(number, low=0)
SHARE = Rule(number, low=0, high=1)

# What the objective, the datasets and the training loop take.
RULES = {
    "n_layer": COUNT, "n_head": COUNT, "n_embd": COUNT,
    "context_length": COUNT, "batch_size": COUNT, "sequence_length": COUNT,
    "val_tokens": COUNT, "train_tokens": COUNT,
    "eval_every": Rule(whole, low=1, words=("auto",)),
    "micro_batch_size": Rule(whole, low=1, words=("auto",)),
    "target": Rule(number, above=0, hint=", in nats per token"),
    "stop_at_target": Rule(yes_no),
    "compile": Rule(yes_no, words=("auto",)),
    "checkpoint_every": Rule(steps_or_minutes, words=("auto",)),
    "resume": Rule(yes_no), "save_weights": Rule(yes_no),
    "initial_weights": Rule(text, hint=": a safetensors file"),
    "log": Rule(words=("csv",)),
    "device": Rule(
        text, pattern=r"auto|cpu|cuda(:\d+)?|mps(:\d+)?",
        hint=": auto, cpu, mps, cuda or, one of several, cuda:1",
    ),
    "dtype": Rule(words=("auto", "float32", "bfloat16")),
    "repeat": Rule(yes_no),
    "num_train_shards": Rule(whole, low=1, high=103),
    "revision": Rule(
        text, hint=": the name of a branch, tag or commit, in quotes if it "
                   "looks like a number",
    ),
    "path": Rule(text, hint=": a folder, a file or a glob"),
    "tokenizer": Rule(words=tuple(SEPARATORS)),
    # Two of the words are the separator and the marker; tokens are uint16.
    "vocab_size": Rule(whole, low=3, high=2**16),
    "num_successors": COUNT, "min_length": COUNT, "max_length": COUNT,
    "margin": NOT_NEGATIVE,
    "num_steps": COUNT, "warmup_steps": STEPS,
    "schedule": Rule(words=SCHEDULES),
    "cooldown": Rule(number, low=0, high=1, hint=", a share of the horizon"),
    "max_grad_norm": Rule(number, low=0, hint=" (0 is off)"),
    "ns_steps": COUNT,
}
# What solvers take, also with a prefix, as in aux_learning_rate.
PATTERNS = {
    "learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    r"beta\d*": Rule(number, low=0, below=1),
    "momentum": SHARE,
    "eps": NOT_NEGATIVE,
    "steps": STEPS,
    "frequency": COUNT,
    "probability": SHARE,
    "radius": NOT_NEGATIVE,
}
# (names, what must hold of their values, what to say where it does not).
RELATIONS = [
    (("warmup_steps", "num_steps"), lambda few, all_: few <= all_,
     "warmup_steps={} is longer than the horizon, num_steps={}"),
    (("sequence_length", "context_length"), lambda rows, most: rows <= most,
     "sequence_length={} is longer than the model's context_length={}"),
    (("val_tokens", "sequence_length"), lambda all_, row: all_ % row == 0,
     "val_tokens={} must be a multiple of sequence_length={}"),
    (("n_embd", "n_head"), lambda width, heads: width % heads == 0,
     "n_embd={} must be a multiple of n_head={}"),
    (("min_length", "max_length"), lambda low, high: low <= high,
     "min_length={} is more than max_length={}"),
    (("num_successors", "vocab_size"), lambda few, all_: few <= all_ - 2,
     "num_successors={} is more than the words of vocab_size={}, two of which "
     "are the separator and the marker"),
]


def find_rule(name, default):
    """The rule of a parameter; None if it may be anything.

    Parameters
    ----------
    name : str
    default : object
        A value that its component declares.
    """
    if name in RULES:
        return RULES[name]
    for pattern, rule in PATTERNS.items():
        if re.fullmatch(f"(.+_)?{pattern}", name):
            return rule
    if isinstance(default, bool):
        return Rule(yes_no)
    if isinstance(default, (int, float)):
        return Rule(real)
    return None


def convert(name, value, defaults):
    """A parameter's value in its type.

    Parameters
    ----------
    name : str
    value : object
    defaults : list
        The values that its component declares.

    Raises
    ------
    ValueError
        Naming the parameter, the value and what is allowed.
    """
    if value is None and None in defaults:
        return None
    rule = find_rule(name, defaults[0])
    if rule is None:
        return value
    try:
        return rule.convert(value)
    except (ValueError, OverflowError):
        none = ", or None" if None in defaults else ""
        raise ValueError(
            f"{name}={value!r} must be {rule}{none}."
        ) from None


def combinations(grid):
    """Yield each combination of a grid's values, a dict by name.

    A grid is a dict as benchopt takes it: from a name to its values, or from
    several, separated by commas, to tuples of theirs. Later entries win.
    """
    entries = []
    for key, values in grid.items():
        names = [name.strip() for name in key.split(",")]
        if not isinstance(values, (list, tuple)):
            values = [values]
        if len(names) == 1:
            values = [(value,) for value in values]
        for value in values:
            if not isinstance(value, (list, tuple)) or (
                len(value) != len(names)
            ):
                raise ValueError(
                    f"{key}={value!r} must be a tuple of {len(names)} values."
                )
        entries.append([dict(zip(names, value)) for value in values])
    for parts in itertools.product(*entries):
        yield {name: v for part in parts for name, v in part.items()}


class CheckedParameters:
    """Mixin of a benchopt component: it refuses parameters that make no
    sense, with one sentence, and converts what is written otherwise."""

    # The parameters that a component can't do without.
    required_parameters = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
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
        defaults = list(combinations(dict(cls.parameters)))
        try:
            values = {
                name: convert(name, value, [d.get(name) for d in defaults])
                for name, value in values.items()
            }
            for names, holds, sentence in RELATIONS:
                if set(names) <= set(values):
                    related = [values[name] for name in names]
                    if not holds(*related):
                        raise ValueError(f"{sentence.format(*related)}.")
        except ValueError as error:
            raise ValueError(f"{cls.name}: {error}") from None
        return values

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
        super().update(chosen)
        for values in combinations(self):
            self.component.check_parameters(values)
