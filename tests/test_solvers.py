"""What every solver promises, and every file in ``solvers/`` is held to.

    pytest --solver path/to/mine.py

holds a file from anywhere to the same.
"""
import ast
import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from benchopt.results import read_results

from benchmark_utils.models.named import make_model
from benchmark_utils.optimizers.groups import check_coverage
from conftest import ROOT
from solver_suite.golden import (
    GOLDEN_MODELS,
    check_recorded,
    read_golden_losses,
    set_up,
    train_losses,
    write_golden_losses,
)
from solver_suite.options import lines_of_code
from solver_suite.references import PERTURBATIONS, REFERENCES, TOLERANCES
from solver_suite.toy import FACTORS, SHAPES, Toy, distance, relative_error
from tuning.tune import parameter_names

# The other name of AdamW is no solver of its own.
SOLVER_FILES = sorted(
    set((ROOT / "solvers").glob("*.py")) - {ROOT / "solvers" / "adam.py"}
)
# What the training loop does with its parameters is tested there.
LOOP_PARAMETERS = {
    "num_steps", "warmup_steps", "schedule", "cooldown", "max_grad_norm"
}
# Each part of a method at work within a few steps.
AT_WORK = {
    "weight_decay": 0.1, "aux_weight_decay": 0.05,
    "precondition_frequency": 2, "update_probability": 0.5,
}
# Values of what is None by default, all of them others than the default's.
OWN_OF_A_ROLE = {
    "aux_beta1": 0.8, "aux_beta2": 0.9,
    "aux_eps": 0.1, "aux_weight_decay": 0.07,
    "embedding_learning_rate": 3e-3, "head_learning_rate": 4e-3,
    "gain_learning_rate": 5e-3, "gain_weight_decay": 0.03,
}
# The RMS of gradients: of the tests, and of GPT-2's parameters from the
# smallest to the largest. Epsilons matter at some of them.
SIZES = [1.0, 3e-3, 3e-5, 3e-7]
# Their weights keep their norm at any learning rate, or the rate is capped.
BOUNDED = {"adafactor", "adamh", "muonh"}
EXCEPTIONS = {
    ("schedule_free", "steps_are_proportional_to_the_learning_rate"):
        "the gradient is taken nearer to the average at each step",
    ("schedule_free", "the_learning_rate_parameter_is_the_peak"):
        "the weights of the average depend on the peak so far",
    ("soap", "float32_follows_float64"):
        "rounding chooses the basis of the first gradient's null space",
    ("sgd", "weight_decay_is_the_stated_one"):
        "its weight decay goes through the momentum",
}


def pytest_generate_tests(metafunc):
    if "solver_file" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("solver")
        files = [Path(chosen).resolve()] if chosen else SOLVER_FILES
        metafunc.parametrize(
            "solver_file", files, ids=[file.stem for file in files]
        )


@pytest.fixture
def solver_class(solver_file, bench, request):
    reason = EXCEPTIONS.get((
        solver_file.stem, request.function.__name__.removeprefix("test_")
    )) if solver_file in SOLVER_FILES else None
    if reason:
        pytest.skip(reason)
    assert solver_file.exists(), f"There is no {solver_file}."
    found, = bench.check_solver_patterns([str(solver_file)], class_only=True)
    if not found.is_installed():
        pytest.skip(f"needs {', '.join(found.requirements)}")
    return found


@pytest.fixture
def make(solver_class):
    """The solver with all its parts at work within a few steps."""
    def make(**parameters):
        at_work = {
            name: value for name, value in AT_WORK.items()
            if name in parameter_names(solver_class)
        }
        return solver_class.get_instance(**(
            {"num_steps": 20, "warmup_steps": 2} | at_work | parameters
        ))

    return make


def own_parameters(solver_class):
    return [
        name for name in parameter_names(solver_class)
        if name not in LOOP_PARAMETERS | {"settings"}
    ]


def stated(name, table, solver_class, solver_file):
    """What the suite has to know about a solver: of the benchmark's own it is
    in a table; a file from elsewhere states it beside its class."""
    if solver_file in SOLVER_FILES and solver_file.stem in table:
        return table[solver_file.stem]
    return solver_class.get_optimizer.__globals__.get(name)


# ---------------------------------------------------------------- the file

def test_has_name_requirements_and_a_tiny_setting(solver_class):
    assert isinstance(solver_class.name, str) and "/" not in solver_class.name
    assert isinstance(solver_class.requirements, list)
    names = parameter_names(solver_class)
    assert LOOP_PARAMETERS <= set(names)
    assert "learning_rate" in names
    assert set(solver_class.test_config) <= set(names)
    for name in names:
        assert not hasattr(solver_class, name), f"{name} is shadowed"


# ------------------------------------------------------------ the optimizer

def test_every_parameter_of_the_model_is_optimized_once(make):
    model = make_model(
        "gpt2", 64, context_length=16, n_layer=2, n_head=2, n_embd=16
    )
    optimizer = make().get_optimizer(model.parameter_roles())
    check_coverage(optimizer, model)
    toy = Toy(make())
    held = [p for g in toy.optimizer.param_groups for p in g["params"]]
    assert sorted(map(id, held)) == sorted(map(id, toy.parameters))


@pytest.mark.parametrize("role, index", [
    (role, index) for role in SHAPES for index in range(len(SHAPES[role]))
], ids=str)
def test_first_steps_equal_the_paper(
        make, solver_class, solver_file, role, index, request):
    for size in SIZES:
        check_first_steps(
            make(), solver_class, solver_file, role, index, size, request
        )


@pytest.mark.parametrize("role", list(SHAPES))
def test_a_role_with_settings_of_its_own_follows_them(
        make, solver_class, solver_file, role, request):
    own = {
        name: value for name, value in OWN_OF_A_ROLE.items()
        if name in parameter_names(solver_class)
    }
    if "head_learning_rate" not in own:
        pytest.skip("its parameters are the same for all roles")
    if solver_file not in SOLVER_FILES:
        pytest.skip("the `reference` of yours may not know them")
    check_first_steps(
        make(**own), solver_class, solver_file, role, 0, 1.0, request
    )


def check_first_steps(
        solver, solver_class, solver_file, role, index, size, request):
    reference = stated("reference", REFERENCES, solver_class, solver_file)
    if reference is None and request.config.getoption("solver"):
        pytest.skip("the file has no function `reference`")
    assert reference, "Add one to tests/solver_suite/references.py."
    # One parameter of the role: random numbers are drawn for it alone.
    shapes = {
        other: SHAPES[role][index:index + 1] if other == role
        else [(4, 4)] if other == "hidden_matrices" else SHAPES[other]
        for other in SHAPES
    }
    toy = Toy(solver, shapes, scale=size)
    parameter, = toy.roles[role]
    place = [p is parameter for p in toy.parameters].index(True)
    gradients = [toy.gradients(t)[place] for t in range(len(FACTORS))]
    toy.run(len(FACTORS))
    expected = reference(
        solver, role, toy.initial[place], gradients, FACTORS
    )
    assert not torch.equal(expected, toy.initial[place])
    error, = relative_error(
        [parameter.detach()], [expected], [toy.initial[place]]
    )
    tolerance = stated("tolerance", TOLERANCES, solver_class, solver_file)
    assert error < (tolerance or 1e-7), f"of gradients of size {size}"


def test_float32_follows_float64(make, solver_file):
    """Nothing overflows or is lost: not the squares of the smallest gradients,
    and no epsilon."""
    if solver_file not in SOLVER_FILES:
        pytest.skip("rounding may decide a step of yours")
    for size in SIZES:
        exact = Toy(make(), scale=size).run(6)
        rounded = Toy(make(), scale=size, dtype=torch.float32).run(6)
        errors = relative_error(
            [w.double() for w in rounded.weights()], exact.weights(),
            exact.initial,
        )
        assert max(errors) < 0.01


def test_every_hyper_parameter_matters(make, solver_class, solver_file):
    base = Toy(make()).run(6)
    moved = distance(base.weights(), base.initial)
    special = stated(
        "perturbations", PERTURBATIONS, solver_class, solver_file
    ) or {}
    ignored = []

    def matters(name, other):
        weights = Toy(make(**{name: other})).run(6).weights()
        return distance(base.weights(), weights) > 1e-5 * moved

    for name in own_parameters(solver_class):
        value = getattr(make(), name)
        if name in special:
            others = [special[name]]
        elif value is None and name in OWN_OF_A_ROLE:
            others = [OWN_OF_A_ROLE[name]]
        else:
            others = perturbed(value)
        if not others:
            warnings.warn(
                f"{name}={value!r} is no number, and the file states no "
                "`perturbations` of it: not tested", stacklevel=1
            )
        # A number far below the gradients, such as an epsilon, may not matter
        # where it is; at their size it must.
        larger = perturbed(value, tiny=1.0) or others
        for i, other in enumerate(others):
            if not matters(name, other) and (
                name in special or not matters(name, larger[i])
            ):
                ignored.append(f"{name}={other}")
    assert not ignored, (
        f"{', '.join(ignored)} changes no weight; `perturbations` of the file "
        "can state other values"
    )


def perturbed(value, tiny=None):
    """Values near this one, each changed in one number; none if it has none.
    With ``tiny``, floats of up to 1e-4 become this."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, float):
        if tiny is not None and abs(value) <= 1e-4:
            return [tiny]
        if 0.5 < value < 1:
            # Averages: 0.93 for 0.95, 0.9997 for 0.9999.
            return [1 - (1 - value) ** 0.9]
        return [0.9 * value if value else 0.1]
    if isinstance(value, (tuple, list)):
        return [
            type(value)([*value[:i], other, *value[i + 1:]])
            for i in range(len(value)) for other in perturbed(value[i], tiny)
        ]
    return []


def test_the_learning_rate_parameter_is_the_peak(make, solver_class):
    """Twice the parameter at half the schedule's factor is the same."""
    doubled = {
        name: 2 * getattr(make(), name) for name in own_parameters(
            solver_class) if name.endswith("learning_rate")
        and getattr(make(), name) is not None
    }
    base = Toy(make()).run(3, factor=1.0)
    other = Toy(make(**doubled)).run(3, factor=0.5)
    assert distance(base.weights(), other.weights()) < 1e-9 * distance(
        base.weights(), base.initial
    )


def test_steps_are_proportional_to_the_learning_rate(make):
    moves = []
    for factor in (1.0, 0.5, 0.0):
        toy = Toy(make()).run(2, factor=1.0)
        before = toy.weights()
        toy.step(2, factor=factor)
        moves.append([a - b for a, b in zip(
            toy.weights(), before, strict=True
        )])
    for whole, half, none in zip(*moves, strict=True):
        assert (half - 0.5 * whole).norm() < 0.02 * whole.norm()
        assert none.norm() < 1e-12 * whole.norm()


def test_weight_decay_is_the_stated_one(make, solver_class):
    """Measured where nothing has moved yet: the difference to a run without
    is the weights times learning rate and weight decay, or nothing."""
    for prefix in ("", "aux_"):
        if f"{prefix}weight_decay" not in own_parameters(solver_class):
            continue
        toys = [
            Toy(make(**{f"{prefix}weight_decay": decay}))
            .run(2, factor=0.0).run(1, start=2, factor=1.0)
            for decay in (0.1, 0.0)
        ]
        rate = getattr(
            make(), f"{prefix}learning_rate", make().learning_rate
        )
        shares = [
            ((without - with_) * initial).sum().item()
            / (0.1 * rate * initial.square().sum().item())
            for with_, without, initial in zip(
                toys[0].weights(), toys[1].weights(), toys[0].initial,
                strict=True
            )
        ]
        # Within 1 %: some decay the weights after the step.
        near = [round(share) for share in shares]
        assert shares == pytest.approx(near, abs=0.01)
        assert set(near) in ({1}, {0, 1})


def test_is_deterministic(make):
    assert distance(
        Toy(make(), dtype=torch.float32).run(6).weights(),
        Toy(make(), dtype=torch.float32).run(6).weights(),
    ) == 0


def test_accumulated_gradients_are_one_gradient(make):
    assert distance(
        Toy(make(), dtype=torch.float32).run(4).weights(),
        Toy(make(), dtype=torch.float32).run(4, parts=2).weights(),
    ) == 0


def test_continues_to_the_bit_from_a_saved_state(make):
    unbroken = Toy(make(), dtype=torch.float32).run(6)
    first = Toy(make(), dtype=torch.float32).run(3)
    file = io.BytesIO()
    torch.save(first.optimizer.state_dict(), file)
    file.seek(0)
    second = Toy(make(), dtype=torch.float32)
    with torch.no_grad():
        for p, weight in zip(second.parameters, first.weights(), strict=True):
            p.copy_(weight)
    second.optimizer.load_state_dict(torch.load(file, weights_only=False))
    before = tensors(first.optimizer.state_dict())
    after = tensors(second.optimizer.state_dict())
    assert [t.dtype for t in before] == [t.dtype for t in after]
    second.run(3, start=3)
    assert distance(second.weights(), unbroken.weights()) == 0


def tensors(state):
    """All tensors in a nested state."""
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        state = state.values()
    elif not isinstance(state, (list, tuple)):
        return []
    return [tensor for value in state for tensor in tensors(value)]


def test_keeps_the_dtype_of_the_parameters(make):
    for dtype in (torch.float32, torch.float64):
        toy = Toy(make(), dtype=dtype).run(2)
        assert {p.dtype for p in toy.parameters} == {dtype}


def test_survives_a_gradient_of_a_million_times_the_size(make):
    toy = Toy(make(), dtype=torch.float32).run(2)
    toy.step(2, gradients=[1e6 * g for g in toy.gradients(2)])
    toy.run(2, start=3)
    before = toy.weights()
    toy.step(5)
    assert all(w.isfinite().all() for w in toy.weights())
    assert distance(toy.weights(), before) > 0


# ----------------------------------------------------------------- the runs

def test_trains(solver_class, bench):
    """Every parameter moves, and the loss of the same tokens falls."""
    objective, trainer = set_up(solver_class, bench)
    weights, losses = [], []
    for step in (0, 20):
        trainer.train(step)
        row = objective.evaluate_result(trainer.eval_weights, {
            "step": step, "train_loss": 0.0,
        })
        losses.append(row["value"])
        weights.append([
            p.detach().clone() for p in trainer.model.parameters()
        ])
    names = [name for name, _ in trainer.model.named_parameters()]
    unmoved = [
        name for name, *pair in zip(
            names, *weights, strict=True
        ) if torch.equal(*pair)
    ]
    assert not unmoved
    assert losses[1] < losses[0]


def test_evaluations_leave_no_trace_in_training(solver_class, bench):
    """Training continues with the same weights, to the bit, whether it is
    evaluated after each step or never."""
    weights, losses = [], []
    for is_evaluated in (False, True):
        objective, trainer = set_up(solver_class, bench)
        for step in range(9):
            trainer.train(step)
            if is_evaluated:
                row = objective.evaluate_result(trainer.eval_weights, {
                    "step": step, "train_loss": 0.0,
                })
                losses.append(row["value"])
        weights.append([p.detach() for p in trainer.model.parameters()])
    assert len(set(losses)) == 9
    assert distance(*weights) == 0


def test_losses_are_the_recorded_ones(solver_class, solver_file, bench):
    if solver_file not in SOLVER_FILES:
        pytest.skip("no losses are recorded for this file")
    check_recorded(solver_file.stem, train_losses(solver_class, bench))


@pytest.mark.parametrize("model", GOLDEN_MODELS)
def test_losses_of_models_are_the_recorded_ones(model, bench):
    adamw, = bench.check_solver_patterns(["AdamW"], class_only=True)
    check_recorded(model, train_losses(adamw, bench, model))


# The last row of the next solver where no other ran before it.
ALONE = {}


def test_a_diverging_run_keeps_its_rows_and_the_next_is_untouched(
        solver_class, solver_file, run):
    broken = {
        name: 1e30 for name in own_parameters(solver_class)
        if name.endswith("learning_rate")
    }
    frame = run({
        str(solver_file): broken | {"max_grad_norm": 0, "num_steps": 15},
        "SGD": {},
    })
    last = frame[frame.solver_name.str.startswith("SGD")].iloc[-1]
    rows = frame[frame.solver_name != last.solver_name]
    if solver_class.name == "SGD":
        rows = frame[frame.num_steps == 15]
        last = frame[frame.num_steps == 10].iloc[-1]
    assert rows.step.iloc[0] == 0 and len(rows) >= 2
    assert rows.diverged.iloc[0] == 0
    assert rows.diverged.iloc[-1] == np.isinf(
        rows[["value", "train_loss"]].iloc[-1]).any()
    if solver_file in SOLVER_FILES and solver_file.stem not in BOUNDED:
        assert rows.diverged.iloc[-1] == 1
    assert not rows[["value", "train_loss", "step"]].isna().any(axis=None)
    if "sgd" not in ALONE:
        ALONE["sgd"] = run({"SGD": {}}).iloc[-1]
    assert last.value == ALONE["sgd"].value
    assert last.train_loss == ALONE["sgd"].train_loss


# ------------------------------------------------------- the field as a whole

def test_files_of_the_field_are_short():
    for file in SOLVER_FILES:
        assert lines_of_code(file.read_text()) <= 40, file


def test_adam_is_another_name_of_adamw(bench):
    """It is one solver, and runs once where all run."""
    classes = {one.name: one for one in bench.get_solvers()}
    adam, adamw = classes["Adam"], classes["AdamW"]
    assert adam.parameters == {"selected": ["all"]} | adamw.parameters
    (_, by_name), = bench.check_solver_patterns(["Adam"])
    solver = adam.get_instance(selected=by_name["selected"][0], beta1=0.8)
    assert type(solver) is adamw
    assert str(solver) == str(adamw.get_instance(beta1=0.8))
    among_all = dict(bench.check_solver_patterns(["all"]))[adam]
    solver = adam.get_instance(selected=among_all["selected"][0])
    assert solver.skip() == (True, "the former name of AdamW, which runs")


def test_golden_losses_are_those_of_the_field_and_the_models(request, bench):
    if request.config.getoption("write_golden_losses"):
        write_golden_losses(bench, SOLVER_FILES)
    names = {*(file.stem for file in SOLVER_FILES), *GOLDEN_MODELS}
    assert set().union(*read_golden_losses().values()) == names


def test_packages_of_solvers_are_those_that_the_project_installs():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = project["optional-dependencies"]["solvers"]
    for file in SOLVER_FILES:
        requirements = next((
            ast.literal_eval(node.value)
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Assign)
            and getattr(node.targets[0], "id", "") == "requirements"
        ), [])
        assert set(requirements) <= {f"pip::{name}" for name in packages}


@pytest.mark.slow
def test_an_absent_package_is_not_installed_and_no_error(tmp_path):
    """Without their packages, solvers are passed over; the others run."""
    script = (
        "import sys\n"
        "sys.modules['opt_einsum'] = None\n"
        "sys.modules['schedulefree'] = None\n"
        "from benchopt.cli.main import run\n"
        "run(sys.argv[1:])\n"
    )
    result = subprocess.run([
        sys.executable, "-c", script, str(ROOT),
        "--config", str(ROOT / "configs" / "smoke.yml"), "--no-plot",
        "--no-cache", "--output", str(tmp_path / "results"),
        "-s", "PSGD-Kron", "-s", "schedule-free adamw",
        "-s", "SGD[num_steps=10,warmup_steps=2]",
    ], capture_output=True, text=True)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert output.count("not installed") == 2
    results = read_results(tmp_path / "results.parquet")
    assert {name.partition("[")[0] for name in results.solver_name} == {"SGD"}
