"""Published settings are what their sources say, reach the optimizer and the
results, and give way to what a command chooses."""
import functools
import itertools
import math
import re
from types import SimpleNamespace

import joblib
import pytest
import torch
import yaml
from benchopt.utils.parametrized_name_mixin import _get_used_parameters

from benchmark_utils.console.errors import UserError
from benchmark_utils.console.progress import log_once
from benchmark_utils.models.named import make_model
from conftest import SOLVER
from docs import ROOT, Clone, code_blocks, write_empty_shards
from solver_suite import references
from solver_suite.references import nesterov
from solver_suite.toy import relative_error

LOOP = "num_steps", "warmup_steps", "schedule", "cooldown", "max_grad_norm"


def adam(lr, beta1, beta2, weight_decay, eps=1e-8):
    return lambda w, gradients, factors: references.adamw(
        w, gradients, factors, lr, beta1, beta2, weight_decay, eps
    )


def stated(statement, **values):
    return functools.partial(statement, SimpleNamespace(**values))


def scion(role):
    values = SimpleNamespace(
        learning_rate=3.6e-4, momentum=0.1, hidden_radius=50.0,
        embedding_radius=3000.0, vector_radius=1.0,
    )
    return functools.partial(references.scion, values, role)


def newton_schulz(matrix, a, b, c, steps):
    """What the iteration makes of each singular value."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vh


def muon_of_2024(w, gradients, factors):
    """Rate 3.6e-4 times the root of the longer side, and no decay."""
    rate = 3.6e-4 * math.sqrt(max(w.shape))
    for n, factor in zip(nesterov(gradients, 0.95), factors, strict=True):
        step = newton_schulz(n, 3.4445, -4.775, 2.0315, 5)
        w = w - rate * factor * step
    return w


def muon_of_2026(w, gradients, factors, lr, weight_decay, beta2=None):
    """Entry 36 of track 3; entry 10, with rows normalised, by ``beta2``."""
    scale = math.sqrt(max(1.0, w.shape[0] / w.shape[1]))
    v = 0.0
    for n, factor in zip(nesterov(gradients, 0.95), factors, strict=True):
        step = newton_schulz(n, 2.0, -1.5, 0.5, 12)
        if beta2:
            v = beta2 * v + (1 - beta2) * (step**2).mean(1, keepdim=True)
            rows = step / v.sqrt()
            step = rows * step.norm() / rows.norm()
        w = (1 - lr * factor * weight_decay) * w - lr * factor * scale * step
    return w


# AdamW for all but the hidden matrices, as in track 3 before and after it was
# tuned, and in track 1.
OLD = {
    "embeddings": adam(0.3, 0.8, 0.95, 0.0, 1e-10),
    "head": adam(0.003125, 0.8, 0.95, 0.0, 1e-10),
    "gains_and_biases": adam(0.01, 0.8, 0.95, 0.0, 1e-10),
}


def tuned(weight_decay):
    return {
        "embeddings": adam(0.7, 0.8, 0.95, weight_decay, 1e-10),
        "head": adam(0.004, 0.8, 0.95, weight_decay, 1e-10),
        "gains_and_biases": adam(0.015, 0.8, 0.95, weight_decay, 1e-10),
    }


TIED = {"embeddings": adam(3.6e-3, 0.9, 0.95, 0.0)}
# Each row once more, from its source: the steps of every role, and the loop's
# parameters.
ROWS = {
    ("AdamW", "gpt2"): (
        {"hidden_matrices": adam(6e-4, 0.9, 0.95, 0.1),
         "embeddings": adam(6e-4, 0.9, 0.95, 0.1),
         "gains_and_biases": adam(6e-4, 0.9, 0.95, 0.0)},
        (19485, 700, "cosine", 1.0, 1.0),
    ),
    ("AdamW", "rotary"): (
        {"hidden_matrices": adam(1.8e-3, 0.9, 0.98, 0.1),
         "embeddings": adam(1.8e-3, 0.9, 0.98, 0.1)},
        (8600, 256, "linear", 0.5, 0.0),
    ),
    ("AdamW", "modern"): (
        tuned(0.002) | {"hidden_matrices": adam(1e-3, 0.9, 0.9, 1.0, 1e-10)},
        (4950, 100, "linear", 0.7, 0.0),
    ),
    ("Muon", "rotary"): (
        TIED | {"hidden_matrices": muon_of_2024},
        (6200, 0, "linear", 0.29, 0.0),
    ),
    ("Muon", "modern"): (
        tuned(0.001) | {"hidden_matrices": functools.partial(
            muon_of_2026, lr=0.025, weight_decay=0.05,
        )},
        (3250, 0, "linear", 0.7, 0.0),
    ),
    ("NorMuon", "modern"): (
        OLD | {"hidden_matrices": functools.partial(
            muon_of_2026, lr=0.035, weight_decay=0.025, beta2=0.95,
        )},
        (3300, 0, "linear", 0.7, 0.0),
    ),
    ("Scion", "rotary"): (
        {role: scion(role) for role in ("hidden_matrices", "embeddings")},
        (5700, 0, "linear", 0.5, 0.0),
    ),
    ("Shampoo", "modern"): (
        OLD | {"hidden_matrices": stated(
            references.shampoo, learning_rate=1.5e-3, beta1=0.9, beta2=0.95,
            weight_decay=0.2, precondition_frequency=5, eps=1e-10,
        )},
        (4150, 0, "linear", 0.7, 0.0),
    ),
    ("SOAP", "rotary"): (
        TIED | {"hidden_matrices": stated(
            references.soap, learning_rate=1.8e-3, beta1=0.95, beta2=0.95,
            precondition_frequency=10, weight_decay=0.0,
        )},
        (6000, 250, "linear", 0.3, 0.0),
    ),
}


@pytest.fixture
def solvers(bench):
    """``solvers(*patterns)``: instances, as benchopt makes them of a command's
    ``-s``."""
    def solvers(*patterns):
        return [
            cls.get_instance(**parameters)
            for cls, grid in bench.check_solver_patterns(list(patterns))
            for parameters in _get_used_parameters(cls, grid)
        ]

    return solvers


def test_every_row_is_tested(bench):
    assert set(ROWS) == {
        (solver.name, model) for solver in bench.get_solvers()
        if solver.is_installed() for model in solver.published
    }


@pytest.mark.slow
@pytest.mark.parametrize("name, model", list(ROWS))
def test_steps_are_those_of_the_source(solvers, name, model):
    """Three steps of every parameter of a small model, at gradients of the
    size that those of the full model have."""
    solver, = solvers(f"{name}[settings=auto]")
    solver.take_settings(model)
    expected, loop = ROWS[name, model]
    assert tuple(getattr(solver, key) for key in LOOP) == loop
    network = make_model(f"{model}-tiny", 64, seed=0).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            # Some start at zero, where no decay can be seen.
            p.add_(torch.randn_like(p), alpha=0.02)
    roles = network.parameter_roles()
    roles = {role: roles[role][:6] for role in roles}
    assert set(expected) == {role for role in roles if roles[role]}
    size = 1e-4 * (524_288 if model == "modern" else 1)
    gradients = {
        p: [size * torch.randn_like(p) for _ in range(3)]
        for p in itertools.chain(*roles.values())
    }
    before = {p: p.detach().clone() for p in gradients}
    optimizer = solver.get_optimizer(roles)
    factors = [1.0, 0.5, 0.25]
    rates = [group["lr"] for group in optimizer.param_groups]
    for t, factor in enumerate(factors):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        for p in gradients:
            p.grad = gradients[p][t].clone()
        optimizer.step()
    exact = name == "AdamW"
    for role, parameters in roles.items():
        # Hidden matrices are orthogonalised in bfloat16, or their bases
        # computed in float32; solver_suite/references.py has each method's.
        bound = 3e-2 if role == "hidden_matrices" and not exact else 1e-7
        for p in parameters:
            after = expected[role](before[p], gradients[p], factors)
            error, = relative_error([p.detach()], [after], [before[p]])
            assert error < bound, (role, tuple(p.shape))


@pytest.mark.slow
def test_commands_of_the_docs_take_the_settings_of_their_models(tmp_path):
    """Without the training, of which these are many hours."""
    write_empty_shards(tmp_path)
    clone = Clone(tmp_path / "clone")
    block, = code_blocks("docs/methods.rst", "bash")
    for command, names in zip(block.splitlines(), [
        ("AdamW", "Muon", "SOAP"), ("AdamW", "Muon", "NorMuon", "Shampoo"),
    ], strict=True):
        output = clone.run(
            f"{command} --collect", returncode=1,
            BENCHOPT_DATA_HOME=str(tmp_path), HF_HUB_OFFLINE="1",
        )
        assert output.count("not run yet") == len(names)
        assert all(f"{name}[settings=auto]" in output for name in names)


@pytest.mark.parametrize("path", sorted(
    (ROOT / "configs").glob("speedrun*.yml")), ids=lambda path: path.stem)
def test_the_data_of_a_speedrun_last_for_its_settings(path, solvers):
    config = yaml.safe_load(path.read_text())
    shards = re.findall(r"num_train_shards=(\d+)", config["dataset"][0])
    model = re.findall(r"model=(\w+)", config["objective"][0])
    for solver in solvers(*config["solver"]):
        solver.take_settings(model[0] if model else "gpt2")
        # A shard holds 190 steps, the last one of all 103 half as many.
        assert solver.num_steps <= (
            190 * int(shards[0]) if shards else 190 * 102 + 105
        )


def test_the_source_says_that_a_step_has_other_tokens(solvers):
    solver, = solvers("AdamW[settings=auto]")
    solver.take_settings("gpt2", tokens_per_step=512)
    source = solver.describe_settings()["settings_source"]
    assert source.endswith("for 524,288 tokens per step and not 512")


def test_what_a_command_chooses_wins(solvers):
    """Also where it chooses what the class has anyway."""
    solver, = solvers(
        "AdamW[settings=auto,learning_rate=0.0006,num_steps=19485]"
    )
    solver.take_settings("rotary")
    assert solver.learning_rate == 6e-4 and solver.num_steps == 19485
    assert solver.warmup_steps == 256 and solver.beta2 == 0.98
    assert str(solver) == (
        "AdamW[learning_rate=0.0006,num_steps=19485,settings=auto]"
    )
    described = solver.describe_settings()
    assert "bench_configs/nanogpt_8gpu.yaml" in described["settings_source"]
    assert described["settings_used"] == (
        "beta1=0.9,beta2=0.98,cooldown=0.5,eps=1e-08,learning_rate=0.0006,"
        "max_grad_norm=0.0,num_steps=19485,schedule=linear,warmup_steps=256,"
        "weight_decay=0.1"
    )


def test_a_row_of_another_model_is_taken_by_its_name(solvers):
    solver, = solvers("AdamW[settings=rotary]")
    solver.take_settings("gpt2-tiny")
    assert solver.learning_rate == 1.8e-3


def test_with_and_without_in_one_list(solvers):
    plain, = solvers("Muon[num_steps=100]")
    without, taken = solvers("Muon[settings=[None,auto],num_steps=100]")
    assert str(without) == str(plain)
    assert str(taken) == "Muon[num_steps=100,settings=auto]"
    for one in (without, taken):
        one.take_settings("modern")
    assert (without.aux_beta1, taken.aux_beta1) == (0.9, 0.8)


def test_a_grid_beside_published_settings(solvers):
    found = solvers(
        "AdamW[settings=auto,learning_rate=[1e-3,2e-3],beta2=[0.9,0.99]]"
    )
    assert [(one.learning_rate, one.beta2) for one in found] == [
        (1e-3, 0.9), (1e-3, 0.99), (2e-3, 0.9), (2e-3, 0.99)
    ]


def test_names_without_settings_are_as_before(solvers):
    solver, = solvers("AdamW")
    assert str(solver) == (
        "AdamW[beta1=0.9,beta2=0.95,cooldown=1.0,eps=1e-08,"
        "learning_rate=0.0006,max_grad_norm=1.0,num_steps=19485,"
        "schedule=cosine,warmup_steps=700,weight_decay=0.1]"
    )
    assert solver.describe_settings() == {
        "settings_used": str(solver)[len("AdamW["):-1], "settings_source": "",
    }


def test_adam_takes_the_settings_of_adamw(solvers):
    adam, adamw = solvers(
        "Adam[settings=auto,beta1=0.8]", "AdamW[settings=auto,beta1=0.8]"
    )
    assert type(adam) is type(adamw) and str(adam) == str(adamw)


@pytest.mark.slow
def test_a_run_says_what_it_takes(run, capsys):
    log_once.cache_clear()
    frame = run(
        {"AdamW": {"settings": "auto"}, "Muon": {"settings": "modern"}},
        {"model": "modern", "n_head": 1, "fused_qkv": True},
    )
    for name in ("AdamW", "Muon"):
        rows = frame[frame.solver_name.str.startswith(name)]
        assert rows.settings_source.str.contains("track 3").all()
        used = rows.settings_used.iloc[0]
        assert "embedding_learning_rate=0.7" in used
        # Chosen by the test.
        assert "num_steps=10," in used and "learning_rate=0.01," in used
        assert rows.solver_name.iloc[0].startswith(f"{name}[learning_rate=")
        assert "None" not in rows.solver_name.iloc[0]
    output = capsys.readouterr().out
    assert "AdamW takes the settings for modern: modded-nanogpt" in output
    assert "head_learning_rate=0.004" in output


def test_what_fits_one_row_alone_is_refused_on_the_others(solvers):
    solver, = solvers("AdamW[settings=auto,num_steps=200]")
    solver.take_settings("modern")
    assert (solver.num_steps, solver.warmup_steps) == (200, 100)
    with pytest.raises(ValueError, match="warmup_steps=256 is longer than"):
        solver.take_settings("rotary")


def test_a_model_without_a_row_is_refused(solvers):
    solver, = solvers("Muon[settings=auto]")
    with pytest.raises(ValueError) as error:
        solver.take_settings("gpt2-tiny")
    assert str(error.value) == (
        "Muon has no published settings for model=gpt2-tiny, but for rotary, "
        "modern: name one of them as settings, or choose the parameters "
        "without."
    )


PUBLISHED_SOLVER = SOLVER.replace("\n    def", '''
    published = {"modern": dict(
        source="a paper", learning_rate=0.02, num_steps=20, warmup_steps=2,
        schedule="linear", cooldown=0.5, max_grad_norm=1.0,
    )}

    def''')


@pytest.mark.parametrize("change, message", [
    (("cooldown=0.5, ", ""), "Unknown: none; lacking: cooldown."),
    (("cooldown=0.5", "cooldown=0.5, speed=2"), "Unknown: speed; lacking: "),
    (('source="a paper", ', ""), "must have a source and all parameters"),
    (("num_steps=20", "num_steps=1"), "Mine: warmup_steps=2 is longer than"),
])
def test_a_row_that_is_not_sound_is_refused(
        solvers, tmp_path, change, message):
    path = tmp_path / "mine.py"
    path.write_text(PUBLISHED_SOLVER.replace(*change))
    with pytest.raises(UserError) as error:
        solvers(f"{path}[settings=modern]")
    assert message in str(error.value)


def test_another_value_in_the_table_is_another_key_of_the_cache(
        solvers, tmp_path):
    keys = []
    for rate in ("0.02", "0.03"):
        path = tmp_path / "mine.py"
        path.write_text(PUBLISHED_SOLVER.replace("0.02", rate))
        solver, = solvers(f"{path}[settings=auto]")
        keys.append(joblib.hash(solver))
    assert keys[0] != keys[1]
