"""Problems that can't be run, and runs that fail: one sentence each.

tests/test_parameters.py has the sentences about single values.
"""
import re

import numpy as np
import pytest
import torch
from benchopt.cli.main import run as benchopt_run
from benchopt.results import read_results
from benchopt.utils.run_context import RunContext
from safetensors.torch import save_file

from benchmark_utils.console.errors import UserError
from benchmark_utils.data.shards import write_shard
from benchmark_utils.models.named import make_model
from benchmark_utils.report import __main__ as report
from benchmark_utils.solver import TrainingSolver
from benchmark_utils.training.trainer import Trainer
from conftest import ROOT, SOLVER, TINY_DATASET, TINY_OBJECTIVE, TINY_SOLVER
from docs import Clone


@pytest.fixture
def refused(bench, monkeypatch):
    """Set a whole run up and return the error; training would be one too."""
    Objective = bench.get_benchmark_objective()
    Dataset, = bench.check_dataset_patterns(["Simulated"], class_only=True)
    Solver, = bench.check_solver_patterns(["AdamW"], class_only=True)

    def no_training(*_):
        raise AssertionError("a step was trained")

    monkeypatch.setattr(Trainer, "train_step", no_training)

    def refused(objective=None, dataset=None, solver=None):
        with pytest.raises(UserError) as error:
            problem = Objective.get_instance(
                **TINY_OBJECTIVE | (objective or {})
            )
            data = Dataset.get_instance(**TINY_DATASET | (dataset or {}))
            method = Solver.get_instance(**TINY_SOLVER | (solver or {}))
            RunContext().set_run_context(
                problem, data, method, repetition=0, base_seed=0
            )
            problem._set_dataset(data)
            method._set_objective(problem)
            method.pre_run_hook(None)
        return str(error.value)

    return refused


@pytest.mark.parametrize("parameters, parts", [
    ({"target": 0.5}, ["target=0.5", "entropy", "1.03"]),
    ({"val_tokens": 32_000}, ["val_tokens=32000", "simulated_val_000000.bin",
                              "5000", "val_tokens=4992"]),
    ({"batch_size": 4000}, ["4000 x 32", "128001 tokens", "50000"]),
    ({"micro_batch_size": 3}, ["micro_batch_size=3", "4 rows"]),
])
def test_objective_and_data(refused, parameters, parts):
    message = refused(objective=parameters)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("change, message", [
    (lambda w: w.pop("final_norm.bias"),
     "final_norm.bias: nothing instead of [32]"),
    (lambda w: w.update({"other": torch.zeros(3)}),
     "other: [3] instead of nothing"),
    (lambda w: w.update({"final_norm.bias": torch.zeros(3)}),
     "final_norm.bias: [3] instead of [32]"),
    (None, "There is no file"),
    ("no weights", "can't be read"),
])
def test_weights_of_another_model(
        refused, monkeypatch, tmp_path, change, message):
    path = tmp_path / "weights.safetensors"
    weights = make_model(
        "gpt2", 256, n_layer=2, n_head=2, n_embd=32, context_length=32
    ).state_dict()
    if isinstance(change, str):
        path.write_text(change)
    elif change:
        change(weights)
        save_file(weights, path)
    # Before a solver is set up, let alone compiled.
    monkeypatch.setattr(TrainingSolver, "set_objective", None)
    found = refused(objective={"initial_weights": str(path)})
    assert message in found and str(path) in found


def test_horizon_and_data(refused):
    message = refused(solver={"num_steps": 1000})
    for part in ("1000 steps of 128 tokens", "hold 390",
                 "3 shards of this size", "repeat=True"):
        assert part in message


def test_data_can_be_repeated_on_purpose(run):
    frame = run({"AdamW": {"num_steps": 40}},
                {"eval_every": 20}, {"train_tokens": 2_000, "repeat": True})
    assert frame.step.iloc[-1] == 40


def test_a_foreign_token_is_refused_before_training(refused, data_home):
    size = {"train_tokens": 3_333}
    assert "1000 steps" in refused(dataset=size, solver={"num_steps": 1000})
    path, = [
        path for path in data_home.glob("simulated/*/*train_000001.bin")
        if path.stat().st_size == 1024 + 2 * 3_333
    ]
    tokens = np.zeros(3_333, int)
    tokens[777] = 300
    write_shard(path, [tokens])
    message = refused(dataset=size)
    for part in (path.name, "token id 300", "position 777", "256 tokens"):
        assert part in message
    path.unlink()


# --------------------------------------------------------- on the command line

@pytest.fixture
def command(capfd, tmp_path, monkeypatch):
    """``command(*arguments)`` is ``benchopt run`` on the smallest problem:
    its exit code and all that it prints."""
    monkeypatch.setenv("BENCHOPT_DATA_HOME", str(tmp_path / "data"))

    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            benchopt_run.main([
                str(ROOT), "--config", str(ROOT / "configs" / "smoke.yml"),
                "--no-plot", "--no-cache",
                "--output", str(tmp_path / "results.parquet"), *arguments,
            ])
        output, errors = capfd.readouterr()
        return end.value.code, output + errors

    return command


@pytest.mark.parametrize("arguments, sentence, is_early", [
    # Although another component's turn would come first.
    (["-s", "Adam[num_steps=60,warmup_steps=5]",
      "-s", "Shampoo[learning_rate=-1e-3]"],
     "Shampoo: learning_rate=-0.001 must be a number, at least 0.", True),
    (["-s", "SGD", "-s", "AdamW[learning_rate=[]]"],
     "AdamW: learning_rate=[] has no values: give at least one.", True),
    (["-d", "Simulated", "-d", "Text[path=/nowhere]"],
     "Text: path=/nowhere matches no files. ", True),
    (["-o", "nanoGPT"], "A step of 512 x 1024 ", False),
])
def test_a_refusal_is_one_line(
        command, tmp_path, arguments, sentence, is_early):
    code, output = command(*arguments)
    assert code == 1 and "Traceback" not in output
    *before, last = filter(None, output.splitlines())
    assert last.startswith(f"Error: {sentence}")
    if is_early:
        assert len(before) <= 2 and not (tmp_path / "data").exists()


@pytest.mark.parametrize("solver, frame", [
    ("Adam[learning_rate=-1]", "check_parameters"),
    ("Adam[num_steps=1000000]", "check_horizon"),
])
def test_a_debugger_gets_the_error_itself(command, monkeypatch, solver, frame):
    monkeypatch.setenv("BENCHOPT_DEBUG", "1")
    with pytest.raises(ValueError) as error:
        command("-s", solver)
    assert not isinstance(error.value, UserError)
    assert frame in [frame.name for frame in error.traceback]


def test_strict_commands_fail(command, monkeypatch):
    monkeypatch.setenv("BENCHOPT_RAISE_ON_ERROR", "1")
    code, output = command("-s", "Adam[num_steps=1000000]")
    assert code == 1
    assert "Error: 1000000 steps" in output.splitlines()[-1]


@pytest.mark.slow
def test_the_summary_is_of_the_runs_that_failed(tmp_path):
    clone = Clone(tmp_path / "clone")
    output = clone.run(
        "benchopt run . --config configs/smoke.yml --no-plot -j 2 -r 2 "
        "-s Adam[num_steps=1000000] -s SGD[num_steps=10,warmup_steps=2]"
    )
    first, last = output.split("\nRuns that need attention:\n")
    name, sentence = last.splitlines()
    assert "\nThe verdict: python -m benchmark_utils.report " in first
    assert name.startswith("AdamW[") and "num_steps=1000000" in name
    assert sentence.startswith("  failed: 1000000 steps of 512 tokens need")
    assert first.count("UserError: 1000000 steps") == 2
    path, = (clone.folder / "outputs").glob("*.parquet")
    assert read_results(path).solver_name.str.startswith("SGD").all()


def test_a_device_that_is_not_there_is_a_sentence_for_each_run(
        command, summary):
    if torch.cuda.is_available():
        pytest.skip("it is there")
    code, output = command(
        "-o", "nanoGPT[device=cuda,batch_size=8,sequence_length=32,"
        "val_tokens=1024]", "-s", "SGD[num_steps=5,warmup_steps=0]",
        "-s", "AdamW[num_steps=5,warmup_steps=0]",
    )
    assert code == 1
    assert output.count("UserError: device='cuda' can't be used: ") == 2
    name, sentence = summary.read_text().splitlines()[:2]
    assert name.startswith("nanoGPT[gpt2,")
    assert sentence.startswith("  failed: device='cuda' can't be used: ")


@pytest.mark.slow
def test_an_unreadable_parameter_is_one_sentence(tmp_path):
    """tests/test_parameters.py has the sentences."""
    output = Clone(tmp_path / "clone").run(
        "benchopt run . --config configs/smoke.yml -s AdamW[learning_rat=1]",
        returncode=1,
    )
    assert output.splitlines()[-1] == (
        "Error: AdamW has no parameter 'learning_rat'. Do you mean "
        "learning_rate?"
    )


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warm_up_of_the_whole_shortest_horizon_is_trained(run, schedule):
    frame = run({"SGD": {
        "num_steps": 1, "warmup_steps": 1, "schedule": schedule,
    }})
    assert frame.step.tolist() == [0, 1]


def test_runs_that_went_well_leave_no_summary(command, summary):
    code, _ = command("-s", "SGD[num_steps=5,warmup_steps=1]")
    assert code == 0 and not summary.exists()


@pytest.fixture
def mine(tmp_path):
    """``mine(old, new)``: the path of SOLVER with a change."""
    def mine(old, new):
        assert old in SOLVER
        path = tmp_path / "mine.py"
        path.write_text(SOLVER.replace(old, new))
        return str(path)

    return mine


@pytest.mark.parametrize("old, new, sentence", [
    ('name = "Mine"', 'name = "Mine"; learning_rate = 0.3',
     "Mine has learning_rate twice, as a parameter and as an attribute of its "
     "class, which benchopt would use. Delete the attribute."),
    ('"num_steps": [10], ', "",
     "Mine lacks num_steps. Add to its parameters what every one has: "
     "num_steps, warmup_steps, schedule, cooldown, max_grad_norm."),
    ('"num_steps": [10], ', '"num_steps": [10], "lr": [-1], ',
     "Mine: lr=-1 must be a number, at least 0."),
], ids=["attribute", "missing", "short name"])
def test_a_solver_without_sound_parameters(
        command, mine, old, new, sentence):
    code, output = command("-s", mine(old, new))
    assert code == 1
    assert output.splitlines()[-1] == f"Error: {sentence}"


@pytest.mark.parametrize("old, new, sentence", [
    ("torch.optim.SGD(parameters, lr=self.learning_rate)",
     "torch.optim.LBFGS(parameters)",
     "LBFGS.step asks for closure. It is called without arguments"),
    ("return torch.optim.SGD(parameters, lr=self.learning_rate)",
     "return torch.optim.lr_scheduler.ConstantLR("
     "torch.optim.SGD(parameters, lr=0.1))",
     "ConstantLR is not an optimizer, which get_optimizer must return: it "
     "has no param_groups, zero_grad."),
    ("return torch.optim.SGD(parameters, lr=self.learning_rate)", "pass",
     "NoneType is not an optimizer, which get_optimizer must return: it "
     "has no param_groups, step, zero_grad, state_dict, load_state_dict."),
    ("def get_optimizer", "def make_optimizer",
     "Mine must define get_optimizer."),
    ("parameters = [", '{}["lr"]; parameters = [', "KeyError: 'lr'"),
    ("parameters = [", "import not_there; parameters = [",
     "ModuleNotFoundError: No module named"),
    ("parameters = [", 'open("/not/there"); parameters = [',
     "FileNotFoundError: [Errno 2] No such"),
    ("parameters = [", "assert not roles; parameters = [", "AssertionError"),
], ids=["closure", "scheduler", "nothing", "no method", "key", "module",
        "file", "assertion"])
def test_a_solver_that_fails_says_why(
        command, mine, summary, old, new, sentence):
    code, output = command("-s", mine(old, new))
    assert code == 1
    ours = "Error: " not in sentence and "AssertionError" not in sentence
    assert "UserError: " * ours + sentence in output
    line = summary.read_text().splitlines()[1].strip()
    assert line.startswith(f"failed: {sentence}")


# --------------------------------------------- runs that end, and not well

@pytest.mark.slow
def test_a_run_that_went_wrong_says_so(run, capsys, summary):
    """It trains nothing, ends above its beginning, or diverges: one warning
    each, and none for a sound run."""
    frame = run({
        "SGD": {"learning_rate": [0.0, 100.0]}, "Adam": {},
        "NAdam": {"learning_rate": 1e30, "max_grad_norm": 0},
    })
    nothing, above, sound, diverged = (
        rows for _, rows in frame.groupby("solver_name", sort=False)
    )
    assert (nothing.weights_moved == 0).all()
    assert sound.weights_moved.tolist() == [0] + [1] * (len(sound) - 1)
    assert above.value.iloc[-1] > above.value.iloc[0]
    assert len(diverged)
    output, summarized = capsys.readouterr().out, summary.read_text()
    for warning in [
        "SGD trains nothing: no weight has changed",
        f"SGD ends at a loss of {above.value.iloc[-1]:.4g}, above the "
        f"{above.value.iloc[0]:.4g} of step 0",
        "NAdam diverged: at step 5 of 10 its loss is not finite",
    ]:
        name, _, sentence = warning.partition(" ")
        assert output.count(f"WARNING: {warning}") == 1
        assert summarized.count(sentence) == 1
        assert re.search(rf"{name}\[.*\n  {re.escape(sentence)}", summarized)
    assert "AdamW" not in summarized


@pytest.mark.parametrize("name", ["AdamH", "MuonH"])
def test_weights_that_keep_their_norm_have_moved(run, name):
    frame = run({name: {"num_steps": 1, "warmup_steps": 0}})
    assert frame.weights_moved.tolist() == [0, 1]


def test_a_target_that_needs_no_training_says_so(
        run, capsys, summary, tmp_path):
    frame = run(objective={"target": 10})
    assert frame.step.tolist() == [0]
    warning = "needs no training: its loss of 5.555 at step 0 is below"
    assert capsys.readouterr().out.count(f"WARNING: AdamW {warning}") == 1
    assert warning in summary.read_text()
    report.main([str(tmp_path / "results.parquet")])
    printed = capsys.readouterr().out
    assert "needed no training" in printed and "no weight" not in printed


def test_weights_that_stay_are_said_with_a_target_of_no_training_too(
        run, capsys, tmp_path):
    run({"SGD": {"learning_rate": 0}},
        {"target": 10, "stop_at_target": False})
    report.main([str(tmp_path / "results.parquet")])
    printed = capsys.readouterr().out
    assert "needed no training" in printed and "no weight" in printed


@pytest.mark.slow
@pytest.mark.parametrize("options", ["-j 2", "--output ../elsewhere/mine"])
def test_runs_from_the_cache_say_what_they_said(tmp_path, options):
    clone = Clone(tmp_path / "clone")
    command = (
        f"benchopt run . --config configs/smoke.yml --no-plot {options} -r 1 "
        "-s SGD[num_steps=4,warmup_steps=1,learning_rate=1e6,max_grad_norm=0] "
        "-s SGD[num_steps=4,warmup_steps=1,learning_rate=0] "
        "-s SGD[num_steps=4,warmup_steps=1]"
    )
    words = []
    for cached in (False, True):
        output = clone.run(command)
        assert ("cached" in output) == cached
        _, last = output.split("\nRuns that need attention:\n")
        words.append(sorted(last.splitlines()))
    assert words[0] == words[1] and len(words[0]) == 4
    assert "  diverged: at step" in words[0][0]
    assert words[0][1].startswith("  trains nothing: ")
