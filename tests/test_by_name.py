"""Optimizers by their names are what docs/methods.rst says of them.

Each that the page lists is stated here, as its paper has it but for the
differences that the page tells.
"""
import inspect
import math
import re

import pytest
import torch

from conftest import ROOT
from solver_suite.references import REFERENCES, decay_of
from solver_suite.toy import FACTORS, SHAPES, Toy, relative_error

ROLES = [role for role in SHAPES for _ in SHAPES[role]]
SIZES = [1.0, 3e-5]
RATE, DECAY = 0.01, 0.1


@pytest.fixture
def solver_class(bench):
    found, = bench.check_solver_patterns(
        ["pytorch-optimizer"], class_only=True
    )
    if not found.is_installed():
        pytest.skip(f"needs {', '.join(found.requirements)}")
    return found


@pytest.fixture
def toy(solver_class):
    """``toy(optimizer, size, **options)``: it after six steps."""
    def toy(optimizer, size, **options):
        solver = solver_class.get_instance(
            optimizer=optimizer, learning_rate=RATE, weight_decay=DECAY,
            options=options or None, num_steps=20, warmup_steps=0,
        )
        return Toy(solver, scale=size).run(len(FACTORS))

    return toy


def lion(h, role, w, gradients, factors):
    h.beta1, h.beta2 = 0.9, 0.99
    return REFERENCES["lion"](h, role, w, gradients, factors)


def signum(momentum):
    def reference(h, role, w, gradients, factors):
        h.momentum = momentum
        return REFERENCES["signum"](h, role, w, gradients, factors)

    return reference


def adan_of_the_paper(h, role, w, gradients, factors):
    """Algorithm 1 of Xie et al.: the weights are divided by 1 + rate * decay
    after the step."""
    for t in range(len(factors)):
        step = REFERENCES["by_name"](
            without_decay(h), role, w, gradients[:t + 1],
            [0.0] * t + factors[t:t + 1],
        )
        w = step / (1 + RATE * factors[t] * decay_of(h, role))
    return w


def without_decay(h):
    return type("Undecayed", (), {
        "learning_rate": h.learning_rate, "weight_decay": 0.0
    })


def adopt(h, role, w, gradients, factors):
    """Algorithm 2 of Taniguchi et al., with a limit of (t + 1)^(1/4) for
    t^(1/4), and with decay at the first gradient."""
    v, m = gradients[0] ** 2, torch.zeros_like(w)
    w = w * (1 - RATE * factors[0] * decay_of(h, role))
    for t in range(1, len(factors)):
        limit = (t + 1) ** 0.25
        step = gradients[t] / v.sqrt().clamp(min=1e-6)
        m = 0.9 * m + 0.1 * step.clamp(-limit, limit)
        w = w - RATE * factors[t] * (m + decay_of(h, role) * w)
        v = 0.9999 * v + 0.0001 * gradients[t] ** 2
    return w


def mars(h, role, w, gradients, factors):
    """Algorithm 2 of Yuan et al. with epsilons elsewhere; AdamW with numbers
    of its own on gains and biases."""
    is_matrix = role != "gains_and_biases"
    rate, decay, beta1, beta2 = (
        (RATE, DECAY, 0.95, 0.99) if is_matrix else (3e-3, 0.1, 0.9, 0.95)
    )
    last, m, v = (torch.zeros_like(w) for _ in range(3))
    for t, (g, factor) in enumerate(zip(gradients, factors, strict=True), 1):
        c = g
        if is_matrix:
            c = g + 0.025 * beta1 / (1 - beta1) * (g - last)
            c = c / max(1.0, c.norm().item())
        last = g
        m = beta1 * m + (1 - beta1) * c
        v = beta2 * v + (1 - beta2) * c**2
        root = ((v + 1e-15).sqrt() + 1e-8) / math.sqrt(1 - beta2**t)
        w = w - rate * factor * (m / (1 - beta1**t) / root + decay * w)
    return w


# Name, options, what they amount to.
STATEMENTS = [
    ("adan", {}, REFERENCES["by_name"]),
    ("adan", {"weight_decouple": False}, adan_of_the_paper),
    ("lion", {}, lion),
    ("signsgd", {}, signum(0.9)),
    ("signsgd", {"momentum": 0.0}, signum(0.0)),
    ("adopt", {}, adopt),
    ("mars", {}, mars),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name, options, reference", STATEMENTS, ids=[
    "".join([name, *options]) for name, options, _ in STATEMENTS
])
def test_first_steps_are_those_stated(toy, name, options, reference, size):
    result = toy(name, size, **options)
    gradients = zip(
        *(result.gradients(t) for t in range(len(FACTORS))), strict=True
    )
    expected = [
        reference(result.solver, role, w, list(g), FACTORS)
        for role, w, g in zip(ROLES, result.initial, gradients, strict=True)
    ]
    errors = relative_error(result.weights(), expected, result.initial)
    assert max(errors) < 1e-7


def test_every_name_of_the_page_is_stated():
    _, page = (ROOT / "docs" / "methods.rst").read_text().split(
        "Optimizers by name\n"
    )
    table = page.partition("What preconditioners cost")[0]
    listed = re.findall(r"^``(\w+)``", table, re.M)
    assert listed and set(listed) == {name for name, *_ in STATEMENTS}


@pytest.mark.parametrize("size, expected", [
    (1.0, 0.0), (3e-5, 0.02), (3e-7, 0.25),
])
def test_mars_by_name_is_as_far_off_as_the_page_says(
        toy, bench, size, expected):
    """After 20 steps, in shares of a matrix's way."""
    found, = bench.check_solver_patterns(["MARS"], class_only=True)
    right, by_name = found.get_instance(
        learning_rate=RATE, weight_decay=DECAY, num_steps=20, warmup_steps=0,
    ), toy("mars", size).solver
    right, by_name = (
        Toy(solver, scale=size).run(20, factor=1.0)
        for solver in (right, by_name)
    )
    errors = relative_error(by_name.weights(), right.weights(), right.initial)
    largest = max(
        error for role, error in zip(ROLES, errors, strict=True)
        if role != "gains_and_biases"
    )
    assert largest == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("parameters, message", [
    (dict(optimizer="adann"), "Close to it: .*adan"),
    (dict(optimizer="sgd_"), "is none of"),
    (dict(optimizer=3), "optimizer=3 is none of"),
    (dict(options="eps"), "options='eps' must be names with values"),
    (dict(options={"beta": 0.9}), "Adan has no option beta.*betas"),
    (dict(options={"weight_decay": 0.1}), "not one of options"),
    (dict(options={"eps": "small"}), "eps='small' must be a number"),
    (dict(options={"eps": "nan"}), "eps='nan' must be a finite number"),
    (dict(options={"betas": (0.9, 0.9)}), "betas=.* must be 3 values"),
    (dict(options={"betas": [0.9, "b", 0.9]}), "betas='b' must be a number"),
    (dict(options={"weight_decouple": 1}), "must be True or False"),
    (dict(options={"eps": -1}), "eps=-1 must be a number, at least 0"),
    (dict(options={"betas": (2, 2, 2)}),
     "betas=2 must be a number from 0 to below 1"),
    (dict(options={"betas": "x"}), "betas='x' must be 3 values, as in its "),
    (dict(options={"betas": 0.9}), "betas=0.9 must be 3 values, as in its "),
    (dict(options={"betas": None}),
     r"optimizer=adan can't be made with options=\{'betas': None\}: "
     "TypeError: "),
    (dict(optimizer="scion", options={"momentum": 0}),
     "optimizer=scion can't be made with .*: ValueError: .*momentum"),
    (dict(optimizer="bsam"), "optimizer=bsam can't be made .*num_data"),
    (dict(optimizer="fromage", weight_decay=0.1), "has no weight decay"),
])
def test_what_is_not_there_or_no_value_is_refused_before_anything_is_done(
        solver_class, parameters, message):
    with pytest.raises(ValueError, match=message):
        solver_class.get_instance(**parameters)
    # As a command does it, before the first component is made.
    with pytest.raises(ValueError, match=message):
        solver_class.parameters.copy().update(
            {name: [value] for name, value in parameters.items()}
        )


@pytest.mark.slow
def test_the_packages_own_defaults_are_allowed(solver_class):
    """Some of its names stand for other things than they do elsewhere."""
    num_made = 0
    package = pytest.importorskip("pytorch_optimizer")
    for optimizer in package.get_supported_optimizers():
        try:
            solver_class.get_instance(optimizer=optimizer)
        except ValueError as error:
            assert re.search(
                "can't be made with options=None|can't take a step in this|"
                "ignores learning_rate|unless its matrices have", str(error)
            )
            continue
        parameters = inspect.signature(
            package.load_optimizer(optimizer)
        ).parameters
        defaults = {
            name: parameter.default for name, parameter in parameters.items()
            if name not in ("lr", "weight_decay")
            and parameter.default not in (parameter.empty, math.inf)
        }
        solver = solver_class.get_instance(
            optimizer=optimizer, options=defaults
        )
        assert solver.options == defaults
        num_made += 1
    assert num_made > 100


@pytest.mark.parametrize("parameters, sentence", [
    ({"optimizer": "adafactor"}, "adafactor ignores learning_rate=0.001"),
    ({"optimizer": "a2grad"}, "a2grad ignores learning_rate=0.001"),
    ({"optimizer": "dadaptadagrad", "weight_decay": 0.1},
     "dadaptadagrad ignores weight_decay=0.1"),
    ({"optimizer": "galore"}, "galore is AdamW unless its matrices have"),
    ({"optimizer": "sophiah"}, "sophiah can't take a step in this benchmark"),
])
def test_a_setting_without_effect_is_refused(
        solver_class, parameters, sentence):
    with pytest.raises(ValueError, match=sentence):
        solver_class.get_instance(**parameters)


def test_adafactor_takes_the_learning_rate_that_it_is_told_to(solver_class):
    solver_class.get_instance(
        optimizer="adafactor", options={"relative_step": False}
    )


def test_weight_decay_is_decoupled_in_torchs_optimizers_too(solver_class):
    """nadam is torch's, whose flag has another name than the package's."""
    plain, decayed = (
        Toy(solver_class.get_instance(
            optimizer="nadam", learning_rate=RATE, weight_decay=decay,
        )).run(1) for decay in (0.0, DECAY)
    )
    for role, p, q, before in zip(
        ROLES, plain.weights(), decayed.weights(), plain.initial, strict=True
    ):
        decay = 0.0 if role == "gains_and_biases" else DECAY
        assert torch.allclose(p - q, RATE * FACTORS[0] * decay * before)


def test_options_are_what_they_say_however_they_are_written(toy):
    """YAML reads 1e-3 as a text."""
    as_text = toy("adan", 1.0, eps="1e-3", betas=["0.9", "0.8", "0.7"],
                  weight_decouple="no")
    as_number = toy("adan", 1.0, eps=1e-3, betas=(0.9, 0.8, 0.7),
                    weight_decouple=False)
    assert as_text.solver.options == as_number.solver.options
    for first, second in zip(
        as_text.weights(), as_number.weights(), strict=True
    ):
        assert torch.equal(first, second)
