"""Whole runs through benchopt: they stop and record as promised, and no run
leaves a trace in another."""
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from benchopt.utils.run_context import RunContext

from benchmark_utils.models.named import make_model
from benchmark_utils.solver import TrainingSolver
from benchmark_utils.training.trainer import Trainer
from conftest import TINY_SOLVER

# Everything a run measures that is not a clock or the memory.
MEASURED = ["step", "tokens", "value", "train_loss", "learning_rate"]


def measured(frame, solver="AdamW", rep=0):
    rows = frame[
        frame.solver_name.str.startswith(solver) & (frame.idx_rep == rep)
    ]
    assert len(rows)
    return rows[MEASURED].to_numpy()


def test_a_run_stops_at_the_target(run):
    frame = run(
        {"AdamW": {"num_steps": 200}}, {"target": 4.5, "eval_every": 10}
    )
    last = frame.iloc[-1]
    assert last.value < 4.5 <= frame.value.iloc[-2]
    assert last.step < 200 and last.target_reached == 1
    assert (frame.target_reached.iloc[:-1] == 0).all()
    assert (frame.stop_reason == "target").all()
    before = frame.iloc[-2]
    share = (before.value - 4.5) / (before.value - last.value)
    assert last.steps_to_target == pytest.approx(before.step + 10 * share)
    assert last.tokens_to_target == pytest.approx(
        128 * last.steps_to_target
    )
    assert before.time < last.seconds_to_target < last.time


@pytest.mark.slow
def test_a_run_can_go_on_below_the_target(run):
    """The numbers to the target are the same, to the last digit."""
    solver = {"AdamW": {"num_steps": 120}}
    objective = {"target": 4.8, "eval_every": 10}
    stopped = run(solver, objective)
    whole = run(solver, objective | {"stop_at_target": False})
    assert stopped.step.iloc[-1] < 120 and whole.step.iloc[-1] == 120
    assert (whole.stop_reason == "horizon").all()
    assert whole.target_reached.iloc[-1] == 1
    for column in ("steps_to_target", "tokens_to_target"):
        assert whole[column].iloc[0] == stopped[column].iloc[0] < 16_000
    rows = len(stopped)
    assert np.array_equal(measured(stopped), measured(whole)[:rows])


def test_weights_can_be_kept_and_started_from(run, tmp_path, capsys):
    """What one run kept, another evaluates to the same loss; and its own
    initialisation is not used."""
    kept = run({"AdamW": {"num_steps": 10}}, {"save_weights": True})
    path, = set(kept.weights)
    assert Path(path).is_relative_to(tmp_path)
    assert Path(path).name == "weights.safetensors"
    assert not [p for p in tmp_path.rglob("tmp*") if p.is_file()]
    assert f"Weights of 10 steps are in {path}\n" in capsys.readouterr().out
    # benchopt reads no path with "=" in it.
    copy = shutil.copy(path, tmp_path / "weights.safetensors")
    frame = run(
        {"SGD": {"num_steps": 5}},
        {"initial_weights": repr(str(copy))}, max_runs=0,
    )
    assert frame.step.tolist() == [0]
    assert frame.value.iloc[0] == kept.value.iloc[-1]


def test_averaged_weights_are_the_ones_kept(run, tmp_path):
    solver = {"schedule-free adamw": {"num_steps": 10}}
    kept = run(solver, {"save_weights": True})
    copy = shutil.copy(kept.weights.iloc[0], tmp_path / "weights")
    again = run(
        {"SGD": {}}, {"initial_weights": repr(str(copy))}, max_runs=0,
    )
    assert again.value.iloc[0] == kept.value.iloc[-1]


def test_a_run_trains_its_whole_horizon_otherwise(run):
    frame = run({"AdamW": {"num_steps": 12}})
    assert frame.step.tolist() == [0, 5, 10, 11, 12]
    assert frame.stop_val.tolist() == frame.step.tolist()
    assert frame.tokens.tolist() == [4 * 32 * step for step in frame.step]
    assert (frame.stop_reason == "horizon").all()
    assert np.isinf(frame.steps_to_target).all()
    assert frame.learning_rate.iloc[0] == 0
    assert frame.value.iloc[0] == pytest.approx(np.log(256), abs=0.1)


@pytest.mark.parametrize("schedule", [
    {"schedule": "linear", "cooldown": 0.0}, {"warmup_steps": 12},
])
def test_a_horizon_without_cooldown_is_trained_to_its_end(run, schedule):
    frame = run({"AdamW": {"num_steps": 12} | schedule})
    assert frame.step.iloc[-1] == 12
    assert frame.learning_rate.iloc[-1] == TINY_SOLVER["learning_rate"]


def test_a_loss_that_does_not_improve_is_trained_to_the_end(run):
    frame = run({"SGD": {"num_steps": 30, "learning_rate": 0.0}},
                {"eval_every": 2})
    assert frame.value.nunique() == 1
    assert frame.step.iloc[-1] == 30


@pytest.mark.slow
def test_a_diverged_run_keeps_its_rows_and_the_next_is_untouched(run):
    broken = {"num_steps": 40, "learning_rate": 1e6, "max_grad_norm": 0}
    frame = run({"SGD": broken, "AdamW": {}})
    alone = run({"AdamW": {}})
    sgd = frame[frame.solver_name.str.startswith("SGD")]
    assert sgd.diverged.tolist()[-1] == 1 and sgd.diverged.iloc[0] == 0
    assert (sgd.stop_reason == "diverged").all()
    assert np.isinf(sgd.value.iloc[-1]) and np.isfinite(sgd.value.iloc[0])
    assert sgd.step.iloc[-1] < 40
    assert not sgd[MEASURED].isna().any(axis=None)
    assert np.array_equal(measured(frame), measured(alone))


def test_a_time_out_is_announced_and_recorded(run, capsys):
    frame = run(timeout=0.0)
    assert frame.stop_reason.tolist() == ["timeout"]
    output = capsys.readouterr().out
    warning = output.index("WARNING: AdamW stops at the first evaluation")
    assert "--no-timeout" in output[warning:]
    assert warning < output.index("step 0 of 10")


def test_too_few_evaluations_are_announced_and_recorded(run, capsys):
    frame = run({"AdamW": {"num_steps": 12}}, max_runs=2)
    assert frame.step.tolist() == [0, 5, 10]
    assert (frame.stop_reason == "max_runs").all()
    assert "stops after 3 of its 5 evaluations" in capsys.readouterr().out


def test_an_unlimited_run_warns_of_nothing(run, capsys):
    run()
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.slow
def test_runs_leave_no_trace_in_each_other(run):
    """Two solvers and two repetitions in one process, against each alone."""
    together = run({"SGD": {}, "AdamW": {}}, n_repetitions=2)
    adam = run({"AdamW": {}}, n_repetitions=2)
    sgd = run({"SGD": {}})
    for rep in (0, 1):
        assert np.array_equal(
            measured(together, rep=rep), measured(adam, rep=rep)
        )
    assert np.array_equal(measured(together, "SGD"), measured(sgd, "SGD"))
    # Same initialisation for every solver, another for each repetition.
    first = measured(together)[0]
    assert np.array_equal(first, measured(together, "SGD")[0])
    assert not np.array_equal(first, measured(together, rep=1)[0])


@pytest.mark.slow
def test_parallel_runs_equal_sequential_ones(run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    # Two runs share a processor's cores, whatever the number of this one's.
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    parallel = run({"SGD": {}, "AdamW": {}}, n_jobs=2)
    assert (parallel.num_threads == 1).all()
    sequential = run({"SGD": {}, "AdamW": {}})
    for solver in ("AdamW", "SGD"):
        assert np.array_equal(
            measured(parallel, solver), measured(sequential, solver)
        )


def test_micro_batches_give_the_same_curve_to_rounding(run):
    whole = measured(run(objective={"micro_batch_size": 4}))
    split = measured(run(objective={"micro_batch_size": 1}))
    np.testing.assert_allclose(split, whole, rtol=1e-4)


def test_validation_loss_is_the_mean_over_the_first_tokens(run, bench):
    frame = run(objective={"val_tokens": 992}, dataset={"val_tokens": 1500})
    Objective = bench.get_benchmark_objective()
    Dataset, = bench.check_dataset_patterns(["Simulated"], class_only=True)
    data = Dataset.get_instance(
        train_tokens=50_000, val_tokens=1500
    ).get_data()
    tokens = torch.from_numpy(data["val"].arrays[0][:993].astype(np.int64))
    objective = Objective.get_instance()
    RunContext().set_run_context(objective, None, None, 0, base_seed=0)
    seed = objective.get_seed(use_repetition=True)
    model = make_model(
        "gpt2", 256, seed, context_length=32, n_layer=2, n_head=2, n_embd=32
    )
    losses = [
        model(tokens[i:i + 32][None], tokens[i + 1:i + 33][None]).item()
        for i in range(0, 992, 32)
    ]
    assert frame.value.iloc[0] == pytest.approx(np.mean(losses), rel=1e-6)


@pytest.mark.slow
def test_the_clock_excludes_everything_but_training(run, bench, monkeypatch):
    Objective = bench.get_benchmark_objective()

    def slow(function):
        def slowed(*args, **kwargs):
            time.sleep(0.6)
            return function(*args, **kwargs)
        return slowed

    monkeypatch.setattr(Objective, "_make_model", slow(Objective._make_model))
    names = Objective.evaluate_result.__globals__
    monkeypatch.setitem(names, "evaluate", slow(names["evaluate"]))
    for name in ("warm_up", "get_result", "get_optimizer", "set_objective"):
        monkeypatch.setattr(
            TrainingSolver, name, slow(getattr(TrainingSolver, name))
        )
    start = time.perf_counter()
    frame = run({"AdamW": {"num_steps": 5}})
    assert time.perf_counter() - start > 4.0
    assert frame.time.iloc[-1] < 0.6
    assert (frame.eval_seconds > 0.59).all()


def test_the_clock_includes_all_training_work(run, monkeypatch):
    step = Trainer.train_step

    def slow_step(*args):
        time.sleep(0.05)
        return step(*args)

    monkeypatch.setattr(Trainer, "train_step", slow_step)
    # What a device still has in its queue when an evaluation comes.
    monkeypatch.setattr(
        sys.modules["benchmark_utils.solver"], "synchronize",
        lambda _: time.sleep(0.2),
    )
    frame = run({"AdamW": {"num_steps": 5, "warmup_steps": 1}})
    assert frame.step.tolist() == [0, 5]
    assert 0.2 <= frame.time.iloc[0] < 0.4
    assert 2 * 0.2 + 5 * 0.05 <= frame.time.iloc[1]
    trained = frame.time.iloc[1] - frame.time.iloc[0]
    assert frame.tokens_per_second.iloc[1] == pytest.approx(
        5 * 128 / trained
    )


@pytest.mark.slow
def test_the_clock_excludes_what_the_preparation_has_queued(
        run, bench, monkeypatch):
    Objective = bench.get_benchmark_objective()
    make_model, queue = Objective._make_model, []

    def queueing_make_model(*args):
        queue.append(1.0)
        return make_model(*args)

    def drain(_):
        time.sleep(sum(queue))
        queue.clear()

    monkeypatch.setattr(Objective, "_make_model", queueing_make_model)
    monkeypatch.setattr(
        sys.modules["benchmark_utils.solver"], "synchronize", drain
    )
    assert run().time.max() < 1.0


def test_each_evaluation_is_a_line_where_there_is_no_terminal(run, capsys):
    frame = run({"Adam": {}}, {"target": 2.0}, n_repetitions=2)
    output = capsys.readouterr().out
    lines = [line for line in output.splitlines() if "val_loss" in line]
    assert len(lines) == len(frame) == 8
    # benchopt's own progress would be a second line for each.
    assert "2 reps)" not in output and "\n\n" not in output
    first = frame[(frame.idx_rep == 1) & (frame.step == 5)].iloc[0]
    for part in (
        "repetition 2: step 5 of 10,",
        f"val_loss {first.value:.4f}, target 2 (+{first.value - 2:.4f})",
        f"{first.tokens_per_second:,.0f} tokens/s, at most 0 s left",
    ):
        assert part in lines[5]


def test_evaluations_are_in_a_file_while_the_run_trains(
        run, monkeypatch, tmp_path, capsys):
    """What is there at the last step has all evaluations before it."""
    read = []
    step = Trainer.train_step

    def reading_step(trainer, inputs, targets):
        if trainer.step == 9:
            path, = tmp_path.rglob("evaluations.csv")
            read.append(pd.read_csv(path))
        step(trainer, inputs, targets)

    monkeypatch.setattr(Trainer, "train_step", reading_step)
    frame = run({"Adam": {}}, {"log": "csv"})
    assert read[0].step.tolist() == [0, 5, 9]
    path, = tmp_path.rglob("evaluations.csv")
    # pandas 2 reads the last digit wrongly unless told.
    assert f"A row per evaluation: {path}\n" in capsys.readouterr().out
    whole = pd.read_csv(path, float_precision="round_trip")
    for name in ("step", "value", "train_loss", "time", "tokens_per_second"):
        assert whole[name].tolist() == frame[name].tolist()


def test_results_describe_the_run(run):
    last = run().iloc[-1]
    assert last.num_parameters == (
        256 * 32 + 32 * 32 + 2 * (12 * 32**2 + 13 * 32) + 2 * 32
    )
    assert (last["device"], last["dtype"]) == ("cpu", "float32")
    assert (last.world_size, last.num_threads) == (1, 1)
    assert (last.micro_batch_size, last.compiled) == (4, 0)
    assert last.torch_version == torch.__version__
    assert last.num_steps == 10
    # At least weights, gradients and the two averages, in float32.
    needed = 16 * last.num_parameters / 2**20
    assert needed < last.peak_memory_mib < 1_000


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++")
@pytest.mark.parametrize("dtype, tolerance", [
    ("float32", 1e-4), ("bfloat16", 5e-3)
])
def test_compilation_changes_rounding_and_is_not_timed(run, dtype, tolerance):
    eager, compiled = (
        run(objective={"compile": c, "dtype": dtype}, n_repetitions=2)
        for c in (False, True)
    )
    for rep in (0, 1):
        np.testing.assert_allclose(
            measured(compiled, rep=rep), measured(eager, rep=rep),
            rtol=tolerance,
        )
    assert (eager.compiled == 0).all() and (compiled.compiled == 1).all()
    # It takes seconds; ten tiny steps take a fraction of one.
    assert compiled.time.max() < 1.0


@pytest.mark.slow
def test_bfloat16_follows_float32(run):
    """200 steps of a small model; the stated bound is 0.02 nats."""
    solver = {"num_steps": 200, "warmup_steps": 20, "learning_rate": 3e-3}
    losses = {
        dtype: run(
            {"AdamW": solver},
            {"dtype": dtype, "batch_size": 16, "eval_every": 20},
            {"train_tokens": 150_000},
        ).value
        for dtype in ("float32", "bfloat16")
    }
    assert losses["float32"].iloc[-1] < 3.7
    difference = losses["bfloat16"] - losses["float32"]
    assert 0 < difference.abs().max() < 0.02
