"""Ranks that train solvers for a few steps, and report what each computed.

Ranks are forked from a process that has imported everything ("forkserver" of
multiprocessing), so only the first takes seconds to start.
"""
import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import pickle
from typing import NamedTuple
from unittest import mock

import torch
import torch._dynamo
import torch.distributed as dist
from benchopt.benchmark import Benchmark
from benchopt.utils.run_context import RunContext

from conftest import ROOT, TINY_DATASET, TINY_OBJECTIVE

BENCH = Benchmark(ROOT, no_cache=True)
# Import once what the ranks need; a model would import torch._dynamo.
BENCH.get_solvers()

from benchmark_utils.distributed.launch import join_world  # noqa: E402
from benchmark_utils.hardware import torch_settings  # noqa: E402
from benchmark_utils.optimizers.combined import parts_of  # noqa: E402
from benchmark_utils.training import checkpoints  # noqa: E402

NUM_STEPS = 30
# Options of optimizers that keep rounding small in float64.
IN_FLOAT64 = {
    # The default of PSGD-Kron is float32.
    "precondition_dtype": torch.float64,
    # SOAP must not rotate the longer side of a matrix: the first step's
    # gradient does not span it, so rounding would choose the eigenbasis.
    "max_precondition_dim": TINY_OBJECTIVE["n_embd"],
}


class Case(NamedTuple):
    """A training: a solver file's stem, sizes, and the dtype of weights,
    gradients, losses and sums."""

    stem: str
    batch_size: int
    micro_batch_size: int
    dtype: torch.dtype = torch.float32


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        # Runs start with this one, not with torch's own.
        with mock.patch.object(
            torch_settings, "INITIAL", torch_settings.read_settings()
        ):
            yield
    finally:
        torch.set_default_dtype(before)


def set_up(case, size, **objective_parameters):
    """Return an objective and a solver on the tiny problem, not started."""
    objective = BENCH.get_benchmark_objective().get_instance(**(
        TINY_OBJECTIVE | dict(
            batch_size=case.batch_size, num_devices=size,
            micro_batch_size=case.micro_batch_size,
        ) | objective_parameters
    ))
    dataset, = BENCH.check_dataset_patterns(["Simulated"], class_only=True)
    solver_class, = BENCH.check_solver_patterns(
        [str(ROOT / "solvers" / f"{case.stem}.py")], class_only=True
    )
    solver = solver_class.get_instance(num_steps=NUM_STEPS, warmup_steps=2)
    RunContext().set_run_context(objective, None, solver, 0, base_seed=0)
    objective.set_data(**dataset.get_instance(**TINY_DATASET).get_data())
    arguments = objective.get_objective()
    make_model = arguments["problem"].make_model
    arguments["problem"] = dataclasses.replace(
        arguments["problem"], make_model=lambda: make_model().to(case.dtype)
    )
    solver.set_objective(**arguments)
    return objective, solver


def train(trainer, objective, checkpoint=None):
    """Train and return losses, tokens, weights and evaluation.

    With a folder for checkpoints, save and restore half-way.
    """
    first_loss = trainer.accumulate_gradients(*next(trainer.batches(1)))
    trainer.optimizer.zero_grad(set_to_none=True)
    losses = [trainer.world.mean(first_loss.item())]
    tokens = []
    for inputs, targets in trainer.batches(NUM_STEPS):
        tokens.append([inputs.tolist(), targets.tolist()])
        trainer.train_step(inputs, targets)
        losses.append(trainer.pop_train_loss())
        if checkpoint and trainer.step == NUM_STEPS // 2:
            save_and_restore(trainer, checkpoint)
    evaluation = objective.evaluate_result(
        trainer.eval_weights, {"step": NUM_STEPS, "train_loss": losses[-1]}
    )
    states = [
        state for part in parts_of(trainer.optimizer)
        for state in part.state.values()
    ]
    return {
        "losses": losses, "tokens": tokens, "val_loss": evaluation["value"],
        "weights": weights_hash(trainer),
        "num_states": sum(bool(state) for state in states),
    }


def train_alone(case):
    """Train on one rank, in this process."""
    with default_dtype(case.dtype):
        objective, solver = set_up(case, 1)
        return train(start(solver, case), objective)


def start(solver, case):
    """Start a solver, with the options for float64; return its Trainer."""
    solver.start()
    for group in solver.trainer.optimizer.param_groups:
        if case.dtype == torch.float64:
            for name in IN_FLOAT64.keys() & group.keys():
                group[name] = IN_FLOAT64[name]
    return solver.trainer


def save_and_restore(trainer, folder):
    state = trainer.state_dict()
    if trainer.world.rank == 0:
        checkpoints.save(folder, trainer.step, state)
    trainer.world.agree(True)
    path, = checkpoints.newest_first(folder)
    trainer.load_state_dict(checkpoints.load(path))


def weights_hash(trainer):
    weights = torch.cat([
        p.detach().flatten() for p in trainer.model.parameters()
    ])
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()


def agreements(world, case):
    """Return what ranks agree on although their inputs differ."""
    _, solver = set_up(case, world.size, micro_batch_size="auto")
    solver.world = world
    with mock.patch(
        "benchmark_utils.solver.max_micro_batch", lambda *_: 1 + world.rank
    ):
        solver.start()
    return {
        "micro_batch_size": solver.trainer.micro_batch_size,
        "maximum": world.maximum(world.rank),
        "mean": world.mean(world.rank),
        "agreed": [world.agree(world.rank == 1), world.agree(True)],
        "from_rank_0": world.from_rank_0(world.rank),
    }


def work(rank, size, folder, cases):
    """Train all cases as one rank. Rank 0 writes the reports of all."""
    torch.set_num_threads(1)
    os.environ["BENCHOPT_DATA_HOME"] = str(folder / "data")
    store = dist.FileStore(str(folder / "store"), size)
    seen = {}
    for number, case in enumerate(cases):
        case_store = dist.PrefixStore(str(number), store)
        join_world(rank, size, case_store)
        with default_dtype(case.dtype):
            objective, solver = set_up(case, size)
            world = solver.world
            world.connect(case_store, solver.machine.device)
            report = train(
                start(solver, case), objective,
                folder / f"{number}_{case.stem}",
            )
        if number == 0:
            report["agreements"] = agreements(world, case)
        seen[case] = world.gather(report)
        world.agree(True)
        world.close()
    if rank == 0:
        (folder / "seen.pickle").write_bytes(pickle.dumps(seen))


def launch(folder, size, cases):
    """Train on several ranks; return each rank's report, by case."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["rank_worker"])
    ranks = [
        processes.Process(target=work, args=(rank, size, folder, cases))
        for rank in range(size)
    ]
    # The forkserver inherits only the environment.
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=(
        os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    )):
        for process in ranks:
            process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * size
    return pickle.loads((folder / "seen.pickle").read_bytes())
