"""Parameters: what is accepted, what it is converted to, and what is refused
by which sentence."""
import ast
import math
from collections import Counter

import joblib
import numpy as np
import pytest
from benchopt.utils.parametrized_name_mixin import _get_used_parameters

from benchmark_utils.console.errors import UserError, unreadable
from benchmark_utils.hardware.device import KINDS
from benchmark_utils.harness import validation
from benchmark_utils.harness.rules import RULES, convert, named_rule
from benchmark_utils.harness.validation import combinations
from solver_suite.toy import Toy

# Component, value, and what the value must be.
MUST_BE = """
nanoGPT  target=0  a number above 0, in nats per token, or None
nanoGPT  target='inf'  a finite number above 0, in nats per token, or None
nanoGPT  val_tokens=0  a whole number, at least 1
nanoGPT  val_tokens=1000  a multiple of sequence_length=1024
nanoGPT  n_embd=0  a whole number, at least 1, or None
nanoGPT  batch_size=2.5  a whole number, at least 1
nanoGPT  eval_every=0  a whole number, at least 1, or 'auto'
nanoGPT  eval_every='often'  a whole number, at least 1, or 'auto'
nanoGPT  dtype='float16'  one of 'auto', 'float32', 'bfloat16'
nanoGPT  device='gpu'  auto, cpu, mps or cuda (cuda:1 is the second of several)
nanoGPT  device='cuda:one'  auto, cpu, mps or cuda (cuda:1 is the second ...
nanoGPT  checkpoint_every='often'  a number of steps, minutes such as ...
nanoGPT  log='xml'  'csv' or None
nanoGPT  stop_at_target='perhaps'  True or False
nanoGPT  compile='maybe'  True or False, or 'auto'
AdamW  num_steps=0  a whole number, at least 1
AdamW  num_steps=10.5  a whole number, at least 1
AdamW  warmup_steps=0.1  a whole number, at least 0
AdamW  schedule='cos'  one of 'constant', 'linear', 'cosine'
AdamW  cooldown=2  a number from 0 to 1, a share of the horizon
AdamW  max_grad_norm=-1  a number, at least 0 (0 is off)
AdamW  learning_rate=-0.001  a number, at least 0
AdamW  learning_rate='nan'  a finite number, at least 0
AdamW  beta1=1.0  a number from 0 to below 1
Simulated  train_tokens=0.5  a whole number, at least 1
Simulated  vocab_size=70000  a whole number from 3 to 65536
Simulated  repeat='never'  True or False
Simulated  repeat=1  True or False
Adafactor  clipping_threshold=-1  a number, at least 1
Adafactor  beta2_decay=3  a number, at most 0
NAdam  momentum_decay=-1  a number, at least 0
AdEMAMix  alpha=-1  a number, at least 0
AdEMAMix  beta1=0  a number above 0 to below 1
AdEMAMix  beta3=0  a number above 0 to below 1
Schedule-free AdamW  beta1=0  a number above 0 to below 1
MARS  gamma=-50  a number, at least 0
Muon  momentum=1.0  a number from 0 to below 1
Muon  ns_steps=100  a whole number from 1 to 99
MuonH  momentum=1.0  a number from 0 to below 1
NorMuon  momentum=1.0  a number from 0 to below 1
Scion  momentum=0  a number above 0 to 1
Scion  momentum=1.1  a number above 0 to 1
"""
# What a command gives, and the sentence about it, or its beginning.
SENTENCES = """
>nanoGPT[sequence_length=2048]
  nanoGPT: sequence_length=2048 is longer than the model's context_length=1024.
>nanoGPT[n_head=5]
  nanoGPT: n_embd=768 must be a multiple of n_head=5.
>AdamW[num_steps=10,warmup_steps=11]
  AdamW: warmup_steps=11 is longer than the horizon, num_steps=10.
>Simulated[num_successors=255]
  Simulated: num_successors=255 is more than the words of vocab_size=256, ...
>Simulated[min_length=7,max_length=6]
  Simulated: min_length=7 is more than max_length=6.
>AdamW[learning_rate=[]]
  AdamW: learning_rate=[] has no values: give at least one.
>AdamW['num_steps, warmup_steps'=[]]
  AdamW: num_steps, warmup_steps=[] has no values: give at least one.
>Simulated[repeat=[]]
  Simulated: repeat=[] has no values: give at least one.
>nanoGPT[target=[]]
  nanoGPT: target=[] has no values: give at least one.
>SGD[settings=auto]
  SGD has no published settings: leave out settings='auto', and choose ...
>SOAP[settings=gpt2]
  SOAP: settings='gpt2' must be one of 'auto', 'rotary', or None.
>SOAP[settings=auto,num_steps=10]
  SOAP: warmup_steps=250 is longer than the horizon, num_steps=10.
>AdamW[settings=auto,learning_rate=fast]
  AdamW: learning_rate='fast' must be a number, at least 0.
>FineWeb[corpus=fineweb-edu,num_train_shards=103]
  FineWeb: num_train_shards=103 is more than there are, corpus=fineweb-edu ...
>Text[path=/nowhere]
  Text: path=/nowhere matches no files. ...
>nanoGPT[initial_weights=[None,'/nowhere/a.safetensors']]
  nanoGPT: initial_weights: there is no file /nowhere/a.safetensors. ...
>pytorch-optimizer[options={betas:x}]
  pytorch-optimizer: betas='x' must be 3 values, as in its default ...
>AdamW[learning_rat=1]
  AdamW has no parameter 'learning_rat'. Do you mean learning_rate?
>nanoGPT[devise=cpu]
  nanoGPT has no parameter 'devise'. Do you mean device?
>nanoGPT[checkpoint_every=5min]
  benchopt can't read [checkpoint_every=5min]. It takes names with values, ...
>SGD[num_steps=20,2]
  benchopt can't read [num_steps=20,2]. It takes names with values, ...
>SGD[num_steps=20
  benchopt can't read SGD[num_steps=20 (missing bracket). It takes ...
"""


def matches(sentence, expected):
    """Whether a sentence is the expected one, whose end may be ``...``."""
    beginning, dots, _ = expected.partition(" ...")
    return sentence == expected or dots and sentence.startswith(beginning)


@pytest.fixture
def choose(bench):
    """``choose(pattern)``: components as a command chooses them, with their
    parameters; skips the test where a component lacks its package."""
    def choose(pattern):
        name = pattern.partition("[")[0]
        found = {
            "nanoGPT": bench.check_objective_filters,
            "Simulated": bench.check_dataset_patterns,
            "FineWeb": bench.check_dataset_patterns,
            "Text": bench.check_dataset_patterns,
        }.get(name, bench.check_solver_patterns)([pattern])
        for component, _ in found:
            if not component.is_installed():
                pytest.skip(f"needs {', '.join(component.requirements)}")
        return found

    return choose


@pytest.mark.parametrize("row", MUST_BE.strip().splitlines())
def test_a_value_that_is_not_allowed_is_refused(choose, row):
    """When the command is parsed, and when Python code makes an instance."""
    name, assignment, allowed = row.split("  ")
    (component, _), = choose(name)
    parameter, text = assignment.split("=")
    for refused in (
        lambda: choose(f"{name}[{assignment}]"),
        lambda: component.get_instance(**{parameter: ast.literal_eval(text)}),
    ):
        with pytest.raises(UserError) as error:
            refused()
        sentence = str(error.value).removesuffix(".")
        sentence = sentence[sentence.rindex(f"{name}: "):]
        assert matches(sentence, f"{name}: {assignment} must be {allowed}")


@pytest.mark.parametrize("row", SENTENCES.strip().split("\n>"))
def test_what_a_command_must_not_give_is_refused(choose, row):
    pattern, expected = row.split("\n")
    with pytest.raises(ValueError) as error:
        choose(pattern.removeprefix(">"))
    sentence = unreadable(error.value) or str(error.value)
    assert matches(sentence, expected.strip())


@pytest.mark.parametrize("name, written, value", [
    # YAML reads 1e-3 as a text.
    ("learning_rate", "1e-3", 0.001),
    ("learning_rate", 1, 1.0),
    ("aux_learning_rate", np.float32(0.5), 0.5),
    ("max_grad_norm", 0, 0.0),
    ("weight_decay", "0", 0.0),
    ("beta1", "0.9", 0.9),
    ("train_tokens", 1e4, 10_000),
    ("train_tokens", "1e4", 10_000),
    ("num_steps", "60", 60),
    ("n_embd", np.int64(64), 64),
    ("num_steps", 2**60 + 1, 2**60 + 1),
    ("eval_every", "auto", "auto"),
    ("eval_every", "5", 5),
    ("repeat", "false", False), ("repeat", "no", False),
    ("repeat", "False", False), ("repeat", "True", True),
    ("repeat", "yes", True), ("repeat", "on", True), ("repeat", "OFF", False),
    ("stop_at_target", "no", False),
    ("compile", "true", True), ("compile", "no", False),
    ("compile", "auto", "auto"),
    ("target", "3.28", 3.28),
    ("device", "cuda:1", "cuda:1"),
    ("checkpoint_every", "100", 100), ("checkpoint_every", "2.5min", "2.5min"),
    ("resume", "no", False), ("save_weights", "yes", True),
])
def test_what_is_written_as_a_value_is_one(name, written, value):
    converted = convert(name, written, [None])
    assert converted == value and type(converted) is type(value)


def test_none_is_allowed_where_it_is_declared():
    assert convert("target", None, [None]) is None
    with pytest.raises(ValueError, match="target=None must be a number"):
        convert("target", None, [2.4])
    with pytest.raises(ValueError, match="target=-1 must .*, or None"):
        convert("target", -1, [None])


NUMBERS = {
    name for name, rule in RULES.items() if rule.kind is not None
    and str(rule).startswith(("a number", "a whole number"))
} | {
    "learning_rate", "aux_learning_rate", "weight_decay", "aux_weight_decay",
    "beta1", "beta2", "aux_beta1", "momentum", "eps", "adam_eps", "ns_steps",
    "inner_steps", "precondition_frequency", "update_probability",
    "hidden_radius",
}


@pytest.mark.parametrize("name", sorted(NUMBERS))
@pytest.mark.parametrize("value", [
    -1, -1e-9, math.nan, math.inf, -math.inf, "nan", "inf", "high", "", True,
    False, None, [1], "1 2", 10**400,
], ids=lambda value: repr(value)[:8])
def test_what_is_no_number_or_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError) as error:
        convert(name, value, [0.5])
    assert str(error.value).startswith(f"{name}={value!r} must be a ")


@pytest.mark.parametrize("name", [
    name for name, rule in RULES.items() if "True or False" in str(rule)
])
@pytest.mark.parametrize("value", [0, 1, "maybe", "", 0.0, None, [True]])
def test_what_is_neither_yes_nor_no_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}=.* must be True or False"):
        convert(name, value, [True])


def test_parameters_of_other_names_are_of_their_defaults_kind():
    assert convert("gamma", "1e-2", [0.025]) == 0.01
    assert convert("rank", 4, [8]) == 4
    assert type(convert("rank", "4", [8])) is int
    assert convert("beta2_decay", -0.8, [-0.8]) == -0.8
    assert convert("nesterov", "no", [True]) is False
    assert convert("options", {"eps": 1}, [None]) == {"eps": 1}
    assert convert("optimizer", "adopt", ["adan"]) == "adopt"
    for name, value, default in [
        ("gamma", "small", 0.025), ("rank", math.inf, 8),
        ("nesterov", 1, True),
    ]:
        with pytest.raises(ValueError, match=f"{name}=.* must be"):
            convert(name, value, [default])


def test_every_parameter_of_the_benchmark_has_a_rule_or_is_listed(bench):
    # A solver's ``published`` lists what "settings" can be; "selected" belongs
    # to an alias, and is never given.
    free = {"optimizer", "options", "settings", "selected"}
    components = [
        bench.get_benchmark_objective(), *bench.get_datasets(),
        *bench.get_solvers(),
    ]
    for component in components:
        if not component.is_installed():
            continue
        for values in combinations(component.parameters):
            checked = component.check_parameters(values)
            assert component.check_parameters(checked) == checked
            assert all(
                checked[name] == value for name, value in values.items()
                if value is not None
            )
            without = {
                name for name in values if named_rule(name) is None
            }
            assert without <= free


@pytest.mark.slow
def test_the_method_takes_both_ends_of_each_range(bench):
    """What a rule allows, the method takes, and stays finite."""
    tested = set()
    for solver in bench.get_solvers():
        if solver.name in ("Adam", "pytorch-optimizer") or (
            not solver.is_installed()
        ):
            continue
        for name, value in solver.get_instance()._parameters.items():
            if name in ("num_steps", "warmup_steps") or isinstance(
                value, (bool, str, type(None))
            ):
                continue
            rule = solver.rules.get(name) or named_rule(name)
            for end in rule.low, rule.high, math.nextafter(rule.below, 0):
                if not abs(end) < 1e6:
                    continue
                toy = Toy(solver.get_instance(**{
                    "num_steps": 20, "warmup_steps": 2, name: end,
                })).run(3)
                assert all(w.isfinite().all() for w in toy.weights()), (
                    solver.name, name, end
                )
                tested.add(solver.name)
    assert {"AdamW", "Muon", "SGD"} <= tested


def test_every_device_of_the_benchmark_is_one():
    for name in ["auto", *KINDS]:
        assert convert("device", name, ["auto"]) == name


def test_combinations_are_those_of_benchopt():
    grid = {"a, b": [(1, 2), (3, 4)], "c": [5, 6], "a": 7}
    assert list(combinations(grid)) == [
        {"a": 7, "b": b, "c": c} for b in (2, 4) for c in (5, 6)
    ]
    with pytest.raises(ValueError, match=r"a, b=\(1,\) must be a tuple of 2"):
        list(combinations({"a, b": [(1,)]}))


@pytest.fixture
def instances(choose):
    """``instances(pattern)``: what benchopt makes of a command's choice."""
    def instances(pattern):
        return [
            component.get_instance(**parameters)
            for component, grid in choose(pattern)
            for parameters in _get_used_parameters(component, grid)
        ]

    return instances


def test_a_number_as_text_is_the_same_run(instances):
    """The same name, parameters, types and key of benchopt's cache."""
    one, = instances(
        "Adam[learning_rate=0.001,max_grad_norm=1.0,num_steps=1000]"
    )
    other, = instances(
        "Adam[learning_rate='1e-3',max_grad_norm=1,num_steps='1e3']"
    )
    assert str(one) == str(other)
    assert repr(one._parameters) == repr(other._parameters)
    assert joblib.hash(one) == joblib.hash(other)


@pytest.mark.parametrize("name", ["Simulated", "FineWeb", "Text"])
def test_no_is_no_for_every_dataset(instances, name):
    default, = instances(name)
    for written in ["False", "'false'", "no", "'False'", "off"]:
        dataset, = instances(f"{name}[repeat={written}]")
        assert dataset.repeat is False
        assert str(dataset) == str(default)


@pytest.fixture
def conversions(monkeypatch):
    """The conversions of this test: how many of each (name, value)."""
    counted = Counter()

    def counting(name, value, *rules):
        counted[name, repr(value)] += 1
        return convert(name, value, *rules)

    monkeypatch.setattr(validation, "convert", counting)
    return counted


# Each row gives its number, which no other test gives, so many times.
@pytest.mark.parametrize("pattern, combinations", [
    ("Muon[learning_rate=0.0131,num_steps=10]", 1),
    ("Muon[learning_rate=0.0132,num_steps=10,momentum=[0.8,0.9]]", 2),
    ("Muon[learning_rate=0.0133,settings=auto]", 1),
    ("Muon[learning_rate=0.0134,settings=modern]", 1),
    ("Adam[learning_rate=0.0135,settings=[None,auto]]", 2),
    ("Simulated[margin=0.0136]", 1), ("nanoGPT[norm_eps=0.0137]", 1),
])
def test_a_combination_is_converted_once(
        choose, conversions, pattern, combinations):
    """When the command is parsed: neither its instances nor the model's
    published settings are converted later."""
    (component, grid), = choose(pattern)
    given = repr(float(pattern[pattern.index("0.013"):][:6]))
    assert combinations == sum(
        count for (_, value), count in conversions.items() if value == given
    )
    parsed = Counter(conversions)
    for parameters in _get_used_parameters(component, grid):
        instance = component.get_instance(**parameters)
        if "settings" in parameters:
            instance.take_settings("modern")
    assert conversions == parsed


def test_an_instance_of_other_values_is_converted_once(choose, conversions):
    (solver, _), = choose("SGD")
    conversions.clear()
    for _ in range(2):
        instance = solver.get_instance(learning_rate="0.123456")
        assert instance.learning_rate == 0.123456
    assert conversions["learning_rate", "'0.123456'"] == 1
    assert set(conversions.values()) == {1}
