"""Parameter rules: types and ranges by name.

``RULES`` is for the objective, the datasets and the training loop;
``PATTERNS`` for solvers, by names that are standard in the field. A parameter
of another name must have its default's type: boolean or number. Text that
spells a number (``"1e-3"``, as YAML reads 1e-3) or a boolean (``"false"``) is
converted. None is allowed where a component declares it.
"""
import dataclasses
import math
import numbers
import re
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from benchmark_utils.data.tokenizers import SEPARATORS
from benchmark_utils.models.architecture import Architecture
from benchmark_utils.models.named import MODELS
from benchmark_utils.training.schedules import SCHEDULES

WORDS = {
    "true": True, "yes": True, "on": True,
    "false": False, "no": False, "off": False,
}


def real(value):
    """Convert to a finite int or float; an int stays one."""
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


def device(value):
    if not isinstance(value, str) or not re.fullmatch(
        r"auto|cpu|(cuda|mps)(:\d+)?", value
    ):
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
    device: "auto, cpu, mps or cuda (cuda:1 is the second of several)",
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Allowed values of a parameter.

    Attributes
    ----------
    kind : function or None
        Converter, which raises ``ValueError`` for what it can't convert. With
        None, only the words are allowed.
    low, high : float
        Inclusive bounds.
    above, below : float
        Exclusive bounds.
    words : tuple of str
        Texts that are allowed in addition.
    hint : str
        End of the message about a value that is not allowed.
    """

    kind: Callable | None = None
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    words: tuple = ()
    hint: str = ""

    def convert(self, value: Any) -> Any:
        """Convert a value; ``ValueError`` if it is not allowed."""
        if isinstance(value, str) and value in self.words:
            return value
        if self.kind is None:
            raise ValueError
        value = self.kind(value)
        if not isinstance(value, str) and not (
            self.low <= value <= self.high
            and self.above < value < self.below
        ):
            raise ValueError
        return value

    def __str__(self):
        kind = TITLES[self.kind] if self.kind else ""
        if self.low > -math.inf and min(self.high, self.below) < math.inf:
            kind += f" from {self.low:g}"
        elif self.low > -math.inf:
            kind += f", at least {self.low:g}"
        elif self.above > -math.inf:
            kind += f" above {self.above:g}"
        elif self.high < math.inf:
            kind += f", at most {self.high:g}"
        if max(self.low, self.above) > -math.inf and self.high < math.inf:
            kind += f" to {self.high:g}"
        elif self.below < math.inf:
            kind += f" to below {self.below:g}"
        if self.words:
            names = ", ".join(map(repr, self.words))
            if kind:
                kind += f", or {names}"
            else:
                kind = names if len(self.words) == 1 else f"one of {names}"
        return kind + self.hint


COUNT = Rule(whole, low=1)
STEPS = Rule(whole, low=0)
NOT_NEGATIVE = Rule(number, low=0)
SHARE = Rule(number, low=0, high=1)
# Decay of an exponential moving average.
AVERAGE = Rule(number, low=0, below=1)


def rule_of_type(kind):
    """Return the rule of a field of ``Architecture``, which validates how its
    fields fit each other."""
    if get_origin(kind) is Literal:
        return Rule(words=get_args(kind))
    if get_args(kind):
        # A number, or a word.
        number_type, words = get_args(kind)
        return Rule(number, low=0, words=get_args(words))
    return {int: COUNT, bool: Rule(yes_no), float: NOT_NEGATIVE}[kind]


# For the objective, the datasets and the training loop.
RULES = {
    "model": Rule(words=tuple(MODELS)),
    **{
        field.name: rule_of_type(field.type)
        for field in dataclasses.fields(Architecture)
    },
    "batch_size": COUNT, "sequence_length": COUNT,
    "val_tokens": COUNT, "train_tokens": COUNT,
    "eval_every": Rule(whole, low=1, words=("auto",)),
    "micro_batch_size": Rule(whole, low=1, words=("auto",)),
    "num_devices": Rule(whole, low=1, words=("auto",)),
    "target": Rule(number, above=0, hint=", in nats per token"),
    "stop_at_target": Rule(yes_no),
    "compile": Rule(yes_no, words=("auto",)),
    "checkpoint_every": Rule(steps_or_minutes, words=("auto",)),
    "resume": Rule(yes_no), "save_weights": Rule(yes_no),
    "initial_weights": Rule(text, hint=": a safetensors file"),
    "log": Rule(words=("csv",)),
    "device": Rule(device),
    "dtype": Rule(words=("auto", "float32", "bfloat16")),
    "repeat": Rule(yes_no),
    "corpus": Rule(words=("fineweb", "fineweb-edu")),
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
    # torch's Muon takes fewer than 100.
    "ns_steps": Rule(whole, low=1, high=99),
    "ns_polynomial": Rule(words=("convergent", "steep")),
    "adjust_lr": Rule(words=("original", "match_rms_adamw")),
}
# For solvers, also with a prefix, as in aux_learning_rate.
PATTERNS = {
    r"learning_rate|lr|weight_decay|eps_?\d*|radius": NOT_NEGATIVE,
    "alpha|gamma|momentum_decay": NOT_NEGATIVE,
    r"betas?\d*|momentum": AVERAGE,
    # Exponent of the step number, in an average's 1 - beta.
    "beta2_decay": Rule(number, high=0),
    "clipping_threshold": Rule(number, low=1),
    "steps": STEPS,
    "frequency": COUNT,
    "probability": SHARE,
}


def named_rule(name: str) -> Rule | None:
    """Return the rule for a parameter's name, or None."""
    if name in RULES:
        return RULES[name]
    for pattern, rule in PATTERNS.items():
        if re.fullmatch(f"(.+_)?({pattern})", name):
            return rule
    return None


def find_rule(name: str, default: Any) -> Rule | None:
    """Return the rule for a parameter's name, or for the type of its default;
    None if it may be anything."""
    if rule := named_rule(name):
        return rule
    if isinstance(default, bool):
        return Rule(yes_no)
    if isinstance(default, (int, float)):
        return Rule(real)
    return None


def convert(
    name: str, value: Any, defaults: list, rules: dict[str, Rule] | None = None
) -> Any:
    """Convert a parameter's value to its type.

    ``defaults`` are the values that its component declares, ``rules`` the
    component's own, which take precedence over this module's. Raises
    ``ValueError`` naming the parameter, the value and what is allowed.
    """
    if value is None and None in defaults:
        return None
    rule = (rules or {}).get(name) or find_rule(name, defaults[0])
    if rule is None:
        return value
    try:
        return rule.convert(value)
    except (ValueError, OverflowError):
        allowed = str(rule)
        if is_infinite(value):
            allowed = allowed.replace("a number", "a finite number", 1)
        if None in defaults:
            allowed += ", or None" if rule.kind else " or None"
        raise ValueError(f"{name}={value!r} must be {allowed}.") from None


def is_infinite(value):
    """Whether it is, or spells, a number that is not finite."""
    try:
        return not math.isfinite(float(value))
    except (ValueError, TypeError, OverflowError):
        return False
