"""Parameters: what is accepted, what it becomes, and under which names."""
import math

import numpy as np
import pytest

from benchmark_utils.hardware.device import KINDS
from benchmark_utils.harness.rules import RULES, convert, named_rule
from benchmark_utils.harness.validation import combinations
from conftest import TINY_SOLVER
from solver_suite.toy import Toy


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
    ("compile", "true", True), ("compile", "auto", "auto"),
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


SOLVER_NAMES = [
    "Adafactor", "AdamH", "AdamW", "AdEMAMix", "Lion", "MARS", "Muon",
    "MuonH", "NAdam", "NorMuon", "PSGD-Kron", "Schedule-free AdamW", "Scion",
    "SGD", "Shampoo", "Signum", "SOAP",
]

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


def test_every_parameter_of_the_benchmark_has_a_rule_or_says_why(bench):
    # What "settings" can be, each solver's table says; "selected" is of an
    # alias, and is never given.
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


@pytest.fixture
def solver_at(bench):
    """``solver_at(name, **parameters)``: an instance of a short horizon."""
    def solver_at(name, **parameters):
        found, = bench.check_solver_patterns([name], class_only=True)
        if not found.is_installed():
            pytest.skip(f"needs {', '.join(found.requirements)}")
        return found.get_instance(
            **{"num_steps": 20, "warmup_steps": 2} | parameters
        )

    return solver_at


@pytest.mark.parametrize("name, parameter, value, allowed", [
    ("Adafactor", "clipping_threshold", -1, "a number, at least 1"),
    ("Adafactor", "beta2_decay", 3, "a number, at most 0"),
    ("NAdam", "momentum_decay", -1, "a number, at least 0"),
    ("AdEMAMix", "alpha", -1, "a number, at least 0"),
    ("AdEMAMix", "beta1", 0, "a number above 0 to below 1"),
    ("AdEMAMix", "beta3", 0, "a number above 0 to below 1"),
    ("Schedule-free AdamW", "beta1", 0, "a number above 0 to below 1"),
    ("MARS", "gamma", -50, "a number, at least 0"),
    ("Muon", "momentum", 1.0, "a number from 0 to below 1"),
    ("Muon", "ns_steps", 100, "a whole number from 1 to 99"),
    ("MuonH", "momentum", 1.0, "a number from 0 to below 1"),
    ("NorMuon", "momentum", 1.0, "a number from 0 to below 1"),
    ("Scion", "momentum", 0, "a number above 0 to 1"),
    ("Scion", "momentum", 1.1, "a number above 0 to 1"),
])
def test_a_value_that_the_method_is_not_defined_for_is_refused(
        solver_at, name, parameter, value, allowed):
    with pytest.raises(ValueError) as error:
        solver_at(name, **{parameter: value})
    assert str(error.value).endswith(
        f"{name}: {parameter}={value!r} must be {allowed}."
    )


def test_every_solver_is_held_to_its_ranges(bench):
    assert {solver.name for solver in bench.get_solvers()} == {
        "Adam", "pytorch-optimizer", *SOLVER_NAMES
    }


@pytest.mark.parametrize("name", SOLVER_NAMES)
def test_the_ends_of_each_range_are_those_of_the_method(
        bench, solver_at, name):
    """What a rule allows, the method takes, and stays finite."""
    names = [
        parameter for parameter, value in solver_at(name)._parameters.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        and parameter not in ("num_steps", "warmup_steps")
    ]
    for parameter in names:
        rule = type(solver_at(name)).rules.get(parameter) or (
            named_rule(parameter)
        )
        ends = [rule.low, rule.high, math.nextafter(rule.below, 0)]
        for end in ends:
            if not math.isfinite(end) or abs(end) > 1e6:
                continue
            solver = solver_at(name, **{parameter: end})
            toy = Toy(solver).run(3)
            assert all(w.isfinite().all() for w in toy.weights()), (
                parameter, end
            )


@pytest.mark.parametrize("name, key", [
    ("AdamW", "learning_rate"), ("AdamW", "num_steps, warmup_steps"),
    ("Simulated", "repeat"), ("nanoGPT", "target"),
])
def test_a_grid_without_combinations_is_refused(bench, name, key):
    component, = [
        component for component in [
            bench.get_benchmark_objective(), *bench.get_datasets(),
            *bench.get_solvers(),
        ] if component.name == name
    ]
    with pytest.raises(ValueError) as error:
        component.parameters.copy().update({key: []})
    assert str(error.value) == (
        f"{name}: {key}=[] has no values: give at least one."
    )


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


def test_a_number_as_text_is_the_same_run(bench, run):
    """The same name, the same cached result, the same losses."""
    Solver, = bench.check_solver_patterns(["Adam"], class_only=True)
    one, other = (
        Solver.get_instance(**TINY_SOLVER | {
            "learning_rate": rate, "max_grad_norm": norm, "num_steps": steps,
        }) for rate, norm, steps in [(0.001, 1.0, 10), ("1e-3", 1, "1e1")]
    )
    assert str(one) == str(other)
    assert one._parameters == other._parameters
    assert list(map(type, one._parameters.values())) == list(
        map(type, other._parameters.values())
    )
    frames = [run({"Adam": {"learning_rate": rate}})
              for rate in (0.001, "'1e-3'")]
    assert frames[0].value.tolist() == frames[1].value.tolist()
    assert frames[0].solver_name.tolist() == frames[1].solver_name.tolist()


@pytest.mark.parametrize("name", ["Simulated", "FineWeb", "Text"])
@pytest.mark.parametrize("written", [False, "false", "no", "False", "off"])
def test_no_is_no_for_every_dataset(bench, name, written):
    Dataset, = bench.check_dataset_patterns([name], class_only=True)
    dataset = Dataset.get_instance(repeat=written)
    assert dataset.repeat is False
    assert str(dataset) == str(Dataset.get_instance())


def test_data_are_not_repeated_after_a_no(run):
    with pytest.raises(RuntimeError, match="failed"):
        run({"Adam": {"num_steps": 40}}, {}, {
            "train_tokens": 2_000, "repeat": "false",
        })


def test_a_run_goes_on_below_its_target_after_a_no(run):
    frame = run({"Adam": {"num_steps": 30}}, {
        "target": 5.4, "stop_at_target": "no",
    })
    assert frame.target_reached.iloc[-1] == 1
    assert frame.step.iloc[-1] == 30


def test_compilation_is_off_after_a_no(run):
    assert (run(objective={"compile": "no"}).compiled == 0).all()
