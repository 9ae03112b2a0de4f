"""Every command and every piece of code in the documentation does what its
page says."""
import contextlib
import io
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import save_file

from benchmark_utils.harness.select import split
from benchmark_utils.models.named import MODELS, make_model
from docs import ROOT, Clone, code_blocks, shortened, write_empty_shards

DATA = "docs/data.rst"
MODELS_PAGE = "docs/models.rst"
SOLVER_PAGE = "docs/add_a_solver.rst"
TRAINER_PAGE = "docs/trainer.rst"
# Names of each page's commands, in their order.
PAGES = {
    "README.rst": "quickstart report pytest choose prepare speedrun collect "
                  "select selected add text prepare_some figures",
    DATA: "fineweb fineweb_edu on_text on_tokens",
    MODELS_PAGE: "problem select_problem selected_problem tune",
    SOLVER_PAGE: "by_name suite curve",
    TRAINER_PAGE: "evaluate",
}


def commands(page):
    """The commands, but for the installation that precedes some of them."""
    for block in code_blocks(page, "bash"):
        for line in block.splitlines():
            for command in line.split(" && "):
                if not command.startswith("pip install"):
                    yield command


COMMAND = {
    name: command for page, names in PAGES.items()
    for name, command in zip(names.split(), commands(page), strict=True)
}


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path / "clone")


def test_every_command_is_run_here():
    source = Path(__file__).read_text()
    used = re.findall(r'(?:COMMAND\[|^    \()"(\w+)"', source, re.M)
    assert set(COMMAND) <= set(used)


def test_ci_runs_the_test_command_of_the_readme():
    assert COMMAND["pytest"] == "pytest -n auto"
    block = next(
        block for block in code_blocks("README.rst", "bash")
        if block.endswith(COMMAND["pytest"])
    )
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith(block)


def select(clone):
    pytest.importorskip("pytorch_optimizer")
    clone.run(COMMAND["select"])


def add_radam(clone):
    source, = code_blocks("README.rst", "python")
    assert len(source.splitlines()) < 40
    (clone.folder / "solvers" / "radam.py").write_text(source + "\n")


def page_solver():
    return "\n\n\n".join(code_blocks(SOLVER_PAGE, "python")) + "\n"


def add_lion(clone):
    (clone.folder / "solvers" / "cautious_lion.py").write_text(page_solver())


def add_tokens(clone):
    writer, dataset, _ = code_blocks(DATA, "python")
    (clone.folder / "write.py").write_text(writer)
    clone.run("python write.py")
    (clone.folder / "datasets" / "mine.py").write_text(dataset)


def shorten_problem(clone):
    pytest.importorskip("pytorch_optimizer")
    config = clone.folder / COMMAND["problem"].split()[-1]
    config.write_text(shortened(config.read_text()))


def select_problem(clone):
    shorten_problem(clone)
    clone.run(COMMAND["select_problem"])


def is_chosen(clone, frame, output):
    """The last line is the next command."""
    runs = frame.groupby(["p_solver_learning_rate", "idx_rep"])
    assert [*runs.groups] == [(0.003, 0), (0.003, 1), (0.01, 0), (0.01, 1)]
    *_, empty, last = output.splitlines()
    hint, command = last.split(": ")
    assert (empty, hint) == ("", "The verdict")
    assert "\nVerdict\n" in clone.run(command)


def is_selected(clone, frame, output):
    """Solvers of a configuration keep their settings."""
    assert 0.01 in set(frame.p_solver_learning_rate)
    assert list((clone.folder / "outputs").rglob("evaluations.csv"))


def is_text(clone, frame, output):
    assert "vocabulary of 257" in output


def is_mine(clone, frame, output):
    assert (frame.dataset_name == "Mine[repeat=False,target=5.0]").all()


def is_proven_curve(clone, frame, output):
    assert list((clone.folder / "outputs").glob("*.html"))
    assert (frame.groupby("solver_name").objective_value.last() < 5).all()


def is_good_text(clone, frame, output):
    """The untrained loss is less than equal probabilities give, because a tied
    head expects each byte once more, and a library has many spaces in a row;
    how much less depends on the version of Python."""
    is_text(clone, frame, output)
    losses = frame.objective_value
    assert np.log(257) - 0.6 < losses.iloc[0] < np.log(257) + 0.1
    assert losses.iloc[-1] < 2.8


@pytest.mark.slow
@pytest.mark.parametrize("name, before, num_runs, num_steps, check", [
    ("choose", None, 4, 60, is_chosen),
    ("selected", select, 2, 60, is_selected),
    ("add", add_radam, 2, 60, None),
    ("text", None, 1, None, is_good_text),
    ("on_text", None, 1, 20, is_text),
    ("on_tokens", add_tokens, 1, 20, is_mine),
    ("by_name", None, 1, 60, None),
    ("curve", add_lion, 2, 60, is_proven_curve),
    ("problem", shorten_problem, 3, 2, None),
    ("selected_problem", select_problem, 2, 2, None),
])
def test_a_command_trains_what_its_page_says(
        clone, name, before, num_runs, num_steps, check):
    if before:
        before(clone)
    # The folder of the data where the tests do not set it.
    home = {"BENCHOPT_DATA_HOME": str(clone.folder / "data")}
    output = clone.run(
        COMMAND[name].removesuffix(" --no-display") + " --no-display",
        **home if before is add_tokens else {},
    )
    frame = clone.results()
    runs = frame.groupby(["solver_name", "idx_rep"])
    assert len(runs) == num_runs
    if num_steps:
        assert (runs.stop_val.last() == num_steps).all()
    if num_steps != 2:
        losses = runs.objective_value
        assert (losses.last() < losses.first()).all()
    if check:
        check(clone, frame, output)


@pytest.mark.slow
def test_the_quick_start_ends_in_a_verdict(clone):
    """Three seeds of each; the two that adapt get there, SGD does not."""
    clone.run(COMMAND["quickstart"])
    frame = clone.results()
    last = frame.groupby(["solver_name", "idx_rep"]).last()
    reasons = last.objective_stop_reason.groupby(level=0).unique()
    assert {
        name.partition("[")[0]: list(values)
        for name, values in reasons.items()
    } == {"AdamW": ["target"], "Muon": ["target"], "SGD": ["horizon"]}
    assert len(last) == 9
    output = " ".join(clone.run(COMMAND["report"]).split())
    assert "Muon reaches 2.335" in output and "fewer steps" in output
    assert "3 of 3 seeds" in output and "0 of 3" in output
    report, = (clone.folder / "outputs").glob("*_run_*.html")
    assert "Steps to target" in report.read_text()
    clone.run(COMMAND["figures"])
    assert "plotly.js v" in report.read_text()
    assert list((clone.folder / "figures").glob("loss_against_*.pdf"))


@pytest.mark.slow
def test_speedrun_is_set_up_with_its_104_shards(clone, tmp_path):
    """Without the training: the shards are there, but hold only zeros."""
    folder = write_empty_shards(tmp_path)
    there = {"BENCHOPT_DATA_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert "done" in clone.run(COMMAND["prepare"], **there)
    first = folder / "fineweb_val_000000.bin"
    first.rename(first.with_suffix(".away"))
    # benchopt has cached that all was prepared; it no longer is.
    assert "1 of 104 file(s) (fineweb_val_000000.bin)" in clone.run(
        COMMAND["prepare"], returncode=1, **there
    )
    first.with_suffix(".away").rename(first)
    assert "done" in clone.run(COMMAND["prepare_some"], **there)
    output = clone.run(
        COMMAND["speedrun"] + " --collect", returncode=1, **there
    )
    assert "num_train_shards=103" in output
    assert "nanoGPT[gpt2]" in output and "num_steps=19485" in output
    assert "not run yet" in output


@pytest.mark.slow
def test_what_has_finished_survives_a_killed_run(clone):
    solvers = (
        ' --no-display -s "AdamW[num_steps=60,warmup_steps=5]"'
        ' -s "SGD[num_steps=190,warmup_steps=5,learning_rate=[0.1,0.2,0.3]]"'
    )
    run = COMMAND["collect"].removesuffix(" --collect") + solvers
    with clone.start(run) as process:
        timer = threading.Timer(600, process.kill)
        timer.start()
        for line in process.stdout:
            if "AdamW" in line and "done" in line:
                break
        process.kill()
        timer.cancel()
    assert not list((clone.folder / "outputs").iterdir())

    clone.run(COMMAND["collect"] + solvers)
    collected = clone.results()
    names = collected.solver_name.unique()
    assert names[0].startswith("AdamW") and len(names) < 4
    shutil.rmtree(clone.folder / "outputs")

    clone.run(run)
    complete = clone.results()
    assert len(complete.solver_name.unique()) == 4
    finished = complete[complete.solver_name.isin(names)]
    # Seconds would differ if anything had been trained again.
    assert finished.time.tolist() == collected.time.tolist()


# ---------------------------------------------------------------------- data

@pytest.mark.slow
@pytest.mark.parametrize("command, folder", [
    (COMMAND["fineweb"], "fineweb10B"),
    (COMMAND["fineweb_edu"], "finewebedu10B"),
], ids=["fineweb", "fineweb_edu"])
def test_shards_are_prepared(clone, command, folder):
    """As far as that goes without a network."""
    output = clone.run(
        command, returncode=1, HF_HUB_OFFLINE="1",
        BENCHOPT_DATA_HOME=str(clone.folder / "data"),
    )
    assert f"data/{folder} lacks 19 of 19 file(s)" in output


@pytest.mark.slow
def test_the_token_files_of_nanogpt_become_shards(clone):
    *_, convert = code_blocks(DATA, "python")
    tokens = np.arange(30_000, dtype=np.uint16)
    for side in "train", "val":
        tokens.tofile(clone.folder / f"{side}.bin")
    (clone.folder / "convert.py").write_text(convert)
    clone.run("python convert.py")
    for side in "train", "val":
        shard = clone.folder / "data" / "mine" / f"mine_{side}_000001.bin"
        assert (np.fromfile(shard, "<u2", offset=1024) == tokens).all()


# -------------------------------------------------------------------- models

def test_the_code_prints_what_the_page_says():
    code, = code_blocks(MODELS_PAGE, "python")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, {})
    text = (ROOT / MODELS_PAGE).read_text()
    assert f"prints ``{output.getvalue().strip()}``" in text


@pytest.mark.slow
def test_numbers_of_parameters_are_those_of_the_table():
    page = (ROOT / MODELS_PAGE).read_text()
    row, = re.findall(r"^parameters +(\S+) +(\S+) +(\S+)$", page, re.M)
    for name, number in zip(["gpt2", "rotary", "modern"], row, strict=True):
        model = make_model(name, 50257)
        assert f"{sum(p.numel() for p in model.parameters()):,}" == number


def test_named_problems_are_those_of_the_table():
    rows = re.findall(
        r"^``(\w+-(?:small|tiny))`` +(\S+) +(\d+) x (\d+) +(\d+) +([\d.]+) ",
        (ROOT / MODELS_PAGE).read_text(), re.M,
    )
    assert {name for name, *_ in rows} == {
        path.stem for path in (ROOT / "configs" / "problems").glob("*.yml")
    }
    for name, parameters, batch_size, length, num_steps, target in rows:
        config = yaml.safe_load(
            (ROOT / "configs" / "problems" / f"{name}.yml").read_text()
        )
        model = make_model(name, 256)
        assert f"{sum(p.numel() for p in model.parameters()):,}" == parameters
        assert int(length) == MODELS[name].context_length
        objective, = config["objective"]
        assert f"[model={name},batch_size={batch_size}," in objective
        assert f",target={target}," in objective
        assert all(
            f"[num_steps={num_steps}," in solver for solver in config["solver"]
        )


@pytest.mark.slow
def test_learning_rates_of_the_tiny_problems_are_the_best_of_the_ledgers(
        clone):
    """The command of the page has nothing left to train."""
    printed, name = {}, ""
    for line in clone.run(COMMAND["tune"]).splitlines():
        if line.startswith("- "):
            printed[name].append(split(line[2:]))
        else:
            name = line.removesuffix(":")
            printed[name] = []
    assert len(printed) == 3
    for name, solvers in printed.items():
        config = yaml.safe_load(
            (ROOT / "configs" / "problems" / f"{name}.yml").read_text()
        )
        assert [split(solver) for solver in config["solver"]] == solvers


# --------------------------------------------------------------- the trainer

@pytest.mark.slow
def test_the_notebook_trains_saves_and_goes_on(tmp_path):
    """All its Python in one process, from the folder of the benchmark but
    leaving nothing there."""
    code = "\n".join(code_blocks(TRAINER_PAGE, "python"))
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, text=True,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
    ).stdout
    losses = [
        float(line.split()[2]) for line in output.splitlines()
        if re.match(r"\d+ ", line)
    ]
    assert len(losses) == 3 and losses[-1] < losses[0] < 4.2
    assert (tmp_path / "run" / "step_000000060" / "SHA256SUMS").exists()
    assert "benchopt" not in code


@pytest.mark.slow
def test_given_weights_are_evaluated_without_training(clone):
    model = make_model(
        "gpt2", 256, seed=5, n_layer=2, n_head=2, n_embd=32,
        context_length=64,
    )
    save_file(model.state_dict(), clone.folder / "weights.safetensors")
    clone.run(COMMAND["evaluate"] + " --no-display")
    frame = clone.results()
    assert frame.objective_step.tolist() == [0]
    assert 5.4 < frame.objective_value.iloc[0] < 5.7


# ----------------------------------------------------- a solver and its suite

@pytest.mark.slow
def test_the_solver_of_the_page_keeps_all_promises(clone):
    add_lion(clone)
    output = clone.run(COMMAND["suite"])
    assert "kept  first steps equal the paper" in output
    assert "kept  every hyper parameter matters" in output
    assert "BROKEN" not in output


def mistaken():
    """The file of the page with one sign wrong, and one option unused."""
    source = page_solver()
    for right, wrong in [
        ("step * p.grad > 0", "step * p.grad < 0"),
        ('group["weight_decay"])\n', '0.0)\n'),
    ]:
        assert right in source
        source = source.replace(right, wrong)
    return source


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
    (mistaken(), "paper or decay or matters", [
        "BROKEN  first steps equal the paper",
        "BROKEN  weight decay is the stated one",
        "BROKEN  every hyper parameter matters",
    ]),
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
], ids=["a sign and an option", "never moves", "needs a closure",
        "long, with an epsilon", "with a damping", "ignores its epsilon"])
def test_the_suite_judges_what_a_file_does(
        clone, tmp_path, source, promises, found):
    mine = tmp_path / "elsewhere" / "mine.py"
    mine.parent.mkdir()
    mine.write_text(source)
    is_broken = "BROKEN" in "".join(found)
    output = clone.run(
        f"pytest --solver {mine} -k '{promises}'", returncode=int(is_broken)
    )
    for line in found:
        assert line in output
    assert ("BROKEN" in output) == is_broken
