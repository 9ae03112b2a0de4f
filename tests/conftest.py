import atexit
import functools
import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from benchopt.benchmark import Benchmark
from benchopt.results import read_results
from benchopt.runner import run_benchmark

from benchmark_utils.console.run_summary import (
    SUMMARY_FILE,
    open_summary,
    print_problems,
    print_report_command,
)

ROOT = Path(__file__).parents[1]
# Tests never reach for the network: the Hub's client must not try.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny models gain nothing from threads, and wait for them on a busy machine.
torch.set_num_threads(1)

# A problem that trains in about a second.
TINY_OBJECTIVE = {
    "n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32,
    "batch_size": 4, "sequence_length": 32, "val_tokens": 1024,
    "eval_every": 5, "device": "cpu", "dtype": "float32",
}
TINY_DATASET = {"train_tokens": 50_000, "val_tokens": 5_000}
TINY_SOLVER = {"num_steps": 10, "warmup_steps": 2, "learning_rate": 1e-2}

# The file of a solver of one's own, as text.
SOLVER = '''
import torch
from benchmark_utils.solver import TrainingSolver


class Solver(TrainingSolver):
    name = "Mine"
    parameters = {
        "learning_rate": [0.01], "num_steps": [10], "warmup_steps": [0],
        "schedule": ["constant"], "cooldown": [1.0], "max_grad_norm": [0],
    }

    def get_optimizer(self, roles):
        parameters = [p for role in roles.values() for p in role]
        return torch.optim.SGD(parameters, lr=self.learning_rate)
'''


def selector(name, parameters):
    """benchopt's way to name a component and its parameters."""
    options = ",".join(f"{key}={value}" for key, value in parameters.items())
    return f"{name}[{options}]"


def read_plain(path):
    """Results with the plain names of their columns."""
    return read_results(path).rename(columns=lambda name: (
        name if name == "objective_name" else name.removeprefix("objective_")
    ))


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory):
    """Generated data goes to a folder of the tests' own."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCHOPT_DATA_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def summary(tmp_path, monkeypatch):
    """Each test has a summary file of its own, which is not printed at the
    end."""
    open_summary()
    atexit.unregister(print_problems)
    atexit.unregister(print_report_command)
    path = tmp_path / "summary.txt"
    monkeypatch.setenv(SUMMARY_FILE, str(path))
    return path


@pytest.fixture(scope="session")
def bench():
    """The benchmark, loaded the way benchopt does."""
    return Benchmark(ROOT, no_cache=True)


@functools.cache
def freeze_imports():
    """Import what a run needs, and keep it out of the garbage collection
    before each run: it takes three quarters of a tiny run's time."""
    Benchmark(ROOT, no_cache=True).get_solvers()
    gc.collect()
    gc.freeze()


def tiny_runs(folder):
    """A function that runs the benchmark on a tiny problem, with results in
    the folder, and returns them.

    ``run(solvers, objective, dataset, **options of run_benchmark)``: solvers
    maps names to parameters that differ from TINY_SOLVER; objective and
    dataset are parameters that differ from the tiny ones.
    """
    freeze_imports()

    def run(solvers=None, objective=None, dataset=None, path=ROOT, **options):
        solvers = {"AdamW": {}} if solvers is None else solvers
        options = dict(
            max_runs=10_000, plot_result=False, no_cache=True,
            output_file=str(folder / "results.parquet"),
        ) | options
        results = run_benchmark(
            path,
            solver_names=[
                selector(name, TINY_SOLVER | parameters)
                for name, parameters in solvers.items()
            ],
            objective_filters=[
                selector("nanoGPT", TINY_OBJECTIVE | (objective or {}))
            ],
            dataset_names=[
                selector("Simulated", TINY_DATASET | (dataset or {}))
            ],
            **options,
        )
        return read_plain(results)

    return run


@pytest.fixture
def run(tmp_path):
    """``tiny_runs`` in this test's folder."""
    return tiny_runs(tmp_path)


@pytest.fixture
def shard_dir(tmp_path):
    """A folder with two training shards and one validation shard of random
    tokens from a vocabulary of 64, in FineWeb's file names."""
    from benchmark_utils.data.shards import write_shard
    rng = np.random.default_rng(0)
    for name, num_tokens in [
        ("val_000000", 1500), ("train_000001", 5000), ("train_000002", 3000)
    ]:
        write_shard(
            tmp_path / f"fineweb_{name}.bin",
            [rng.integers(64, size=num_tokens)], vocab_size=64,
        )
    return tmp_path
