"""Following docs/add_a_solver.rst to the letter gives a proven solver."""
import re
import shutil

import pytest

from docs import Clone, code_blocks

PAGE = "docs/add_a_solver.rst"


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path / "clone")


def test_from_the_paper_to_a_proven_curve(clone):
    any_optimizer, suite, curve = code_blocks(PAGE, "bash")
    clone.run(any_optimizer)
    shutil.rmtree(clone.folder / "outputs")
    (clone.folder / "solvers" / "cautious_lion.py").write_text(
        "\n\n\n".join(code_blocks(PAGE, "python")) + "\n"
    )
    output = clone.run(suite)
    assert "kept  first steps equal the paper" in output
    assert "kept  every hyper parameter matters" in output
    assert "BROKEN" not in output
    clone.run(curve)
    assert list((clone.folder / "outputs").glob("*.html"))
    last = clone.results().groupby("solver_name").last()
    assert len(last) == 2
    assert (last.objective_step == 60).all()
    assert (last.objective_value < 5).all()


def test_the_suite_notices_mistakes(clone, tmp_path):
    """The file of the page with one sign wrong, and one option unused."""
    source = "\n\n\n".join(code_blocks(PAGE, "python")) + "\n"
    for right, wrong in [
        ("step * p.grad > 0", "step * p.grad < 0"),
        ('group["weight_decay"])\n', '0.0)\n'),
    ]:
        assert right in source
        source = source.replace(right, wrong)
    mine = tmp_path / "elsewhere" / "mine.py"
    mine.parent.mkdir()
    mine.write_text(source)
    output = clone.run(
        f"pytest --solver {mine} -k 'paper or decay or matters'", returncode=1
    )
    for promise in (
        "first steps equal the paper", "weight decay is the stated one",
        "every hyper parameter matters",
    ):
        assert f"BROKEN  {promise}" in output


SLEEPER = """
import torch

from benchmark_utils.solver import TrainingSolver


class Sleeper(torch.optim.SGD):
    def step(self):
        pass


class Solver(TrainingSolver):
    name = "Sleeper"
    parameters = {
        "learning_rate": [0.1],
        "num_steps, warmup_steps": [(100, 10)],
        "schedule, cooldown": [("linear", 1.0)], "max_grad_norm": [1.0],
    }

    def get_optimizer(self, roles):
        return Sleeper(sum(roles.values(), []), lr=self.learning_rate)
"""
CLOSURES = SLEEPER.replace("def step(self)", "def step(self, closure)")
# Correct, with an epsilon, a choice between words, and more than 40 lines.
CAREFUL = """
import torch

from benchmark_utils.solver import TrainingSolver


class Careful(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if group["by"] == "entry":
                    size = p.grad.abs()
                else:
                    size = p.grad.norm()
                p.sub_(group["lr"] * p.grad / (size + group["eps"]))


class Solver(TrainingSolver):
    name = "Careful"
    parameters = {
        "learning_rate": [0.01], "eps": [1e-8], "by": ["entry"],
        "num_steps, warmup_steps": [(100, 10)],
        "schedule, cooldown": [("linear", 1.0)], "max_grad_norm": [1.0],
    }

    def get_optimizer(self, roles):
        return Careful(sum(roles.values(), []), dict(
            lr=self.learning_rate, eps=self.eps, by=self.by,
        ))


perturbations = {"by": "matrix"}
LINES = [
""" + 40 * "    0,\n" + """]


def reference(solver, role, weight, gradients, factors):
    for gradient, factor in zip(gradients, factors):
        step = gradient / (gradient.abs() + solver.eps)
        weight = weight - solver.learning_rate * factor * step
    return weight
"""


@pytest.mark.slow
@pytest.mark.parametrize("source, promises, found", [
    (SLEEPER, "trains", ["BROKEN  trains"]),
    (CLOSURES, "deterministic", [
        "BROKEN  is deterministic: ValueError: Sleeper.step asks for closure",
    ]),
    (CAREFUL, "paper or matters or trains", [
        "kept  first steps equal the paper", "kept  trains",
        "kept  every hyper parameter matters", "length  66 lines of code",
    ]),
    (re.sub(r"\beps\b", "damping", CAREFUL), "paper or matters", [
        "kept  first steps equal the paper",
        "kept  every hyper parameter matters",
    ]),
    (CAREFUL.replace("+ group[\"eps\"]", ""), "paper or matters", [
        "BROKEN  every hyper parameter matters: AssertionError: eps=",
        "`perturbations`",
    ]),
], ids=["never moves", "needs a closure", "long, with an epsilon",
        "with a damping", "ignores its epsilon"])
def test_the_suite_judges_what_a_file_does(
        clone, tmp_path, source, promises, found):
    mine = tmp_path / "elsewhere" / "mine.py"
    mine.parent.mkdir()
    mine.write_text(source)
    output = clone.run(
        f"pytest --solver {mine} -k '{promises}'",
        returncode=int("BROKEN" in "".join(found)),
    )
    for line in found:
        assert line in output
    assert ("BROKEN" in output) == ("BROKEN" in "".join(found))
