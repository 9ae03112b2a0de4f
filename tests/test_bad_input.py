"""A problem that can't be run is refused before any training, by one error
that names the parameter and says what to do."""
import numpy as np
import pytest
from benchopt.utils.run_context import RunContext

from benchmark_utils.data.shards import write_shard
from benchmark_utils.training.trainer import Trainer
from conftest import TINY_DATASET, TINY_OBJECTIVE, TINY_SOLVER


@pytest.fixture
def refused(bench, monkeypatch):
    """Set a whole run up and return the error; training would be one too."""
    Objective = bench.get_benchmark_objective()
    Dataset, = bench.check_dataset_patterns(["Simulated"], class_only=True)
    Solver, = bench.check_solver_patterns(["Adam"], class_only=True)

    def no_training(*_):
        raise AssertionError("a step was trained")

    monkeypatch.setattr(Trainer, "train_step", no_training)

    def refused(objective=None, dataset=None, solver=None):
        objective = Objective.get_instance(
            **TINY_OBJECTIVE | (objective or {})
        )
        dataset = Dataset.get_instance(**TINY_DATASET | (dataset or {}))
        solver = Solver.get_instance(**TINY_SOLVER | (solver or {}))
        RunContext().set_run_context(
            objective, dataset, solver, repetition=0, base_seed=0
        )
        with pytest.raises(ValueError) as error:
            objective._set_dataset(dataset)
            solver._set_objective(objective)
            solver.pre_run_hook(None)
        return str(error.value)

    return refused


@pytest.mark.parametrize("parameters, parts", [
    ({"target": 0.5}, ["target=0.5", "entropy", "1.03"]),
    ({"target": 0}, ["target=0"]),
    ({"sequence_length": 64}, ["sequence_length=64", "context_length=32"]),
    ({"val_tokens": 1000}, ["val_tokens=1000", "sequence_length=32"]),
    ({"val_tokens": 0}, ["val_tokens=0", "sequence_length=32"]),
    ({"val_tokens": 32_000}, ["val_tokens=32000", "simulated_val_000000.bin",
                              "5000", "val_tokens=4992"]),
    ({"batch_size": 4000}, ["4000 x 32", "128001 tokens", "50000"]),
    ({"batch_size": 0}, ["batch_size=0"]),
    ({"batch_size": 1e3}, ["batch_size=1000.0", "whole number"]),
    ({"n_layer": 2.0}, ["n_layer=2.0", "whole number"]),
    ({"val_tokens": 1024.0}, ["val_tokens=1024.0", "whole number"]),
    ({"eval_every": 0}, ["eval_every=0", "'auto'"]),
    ({"eval_every": "often"}, ["eval_every='often'"]),
    ({"micro_batch_size": 3}, ["micro_batch_size=3", "4 rows"]),
    ({"n_head": 3}, ["n_embd=32", "n_head=3"]),
    ({"dtype": "float16"}, ["float16", "bfloat16"]),
    ({"device": "tpu"}, ["device='tpu'", "cuda"]),
])
def test_objective(refused, parameters, parts):
    message = refused(objective=parameters)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("parameters, parts", [
    ({"num_steps": 1000}, ["1000 steps of 128 tokens", "hold 390",
                           "3 shards of this size", "repeat=True"]),
    ({"num_steps": 0}, ["num_steps=0"]),
    ({"num_steps": 1e3}, ["num_steps=1000.0", "whole number"]),
    ({"warmup_steps": 11}, ["warmup_steps=11", "num_steps=10"]),
    ({"warmup_steps": 0.1}, ["warmup_steps=0.1", "whole number"]),
    ({"schedule": "cos"}, ["'cos'", "cosine"]),
    ({"cooldown": 2}, ["cooldown=2"]),
])
def test_solver(refused, parameters, parts):
    message = refused(solver=parameters)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_several_processes(refused, monkeypatch, variable):
    monkeypatch.setenv(variable, "8")
    assert f"{variable}=8: one run is one process" in refused()
    monkeypatch.setenv(variable, "1")
    assert "num_steps=0" in refused(solver={"num_steps": 0})


def test_data_can_be_repeated_on_purpose(run):
    frame = run({"Adam": {"num_steps": 40}},
                {"eval_every": 20}, {"train_tokens": 2_000, "repeat": True})
    assert frame.step.iloc[-1] == 40


def test_a_foreign_token_is_refused_before_training(refused, data_home):
    size = {"train_tokens": 3_333}
    assert "num_steps=0" in refused(dataset=size, solver={"num_steps": 0})
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
