"""A rank that trains solvers for a few steps and says what it saw.

    python rank_worker.py RANK SIZE STORE OUT MICRO_BATCH_SIZE [SOLVER ...]

Rank 0 writes one JSON dict, from a solver file's stem to what all ranks saw.
"""
import hashlib
import json
import sys

import torch
import torch.distributed as dist
from benchopt.benchmark import Benchmark
from benchopt.utils.run_context import RunContext

from benchmark_utils.followers import take_place
from conftest import ROOT, TINY_DATASET, TINY_OBJECTIVE

NUM_STEPS = 30


def set_up(bench, stem, micro_batch_size, size, **parameters):
    """An objective and a solver on the tiny problem, not started."""
    objective = bench.get_benchmark_objective().get_instance(**(
        TINY_OBJECTIVE
        | dict(micro_batch_size=micro_batch_size, num_devices=size)
    ))
    dataset, = bench.check_dataset_patterns(["Simulated"], class_only=True)
    solver_class, = bench.check_solver_patterns(
        [str(ROOT / "solvers" / f"{stem}.py")], class_only=True
    )
    solver = solver_class.get_instance(
        **dict(num_steps=NUM_STEPS, warmup_steps=2) | parameters
    )
    RunContext().set_run_context(objective, None, solver, 0, base_seed=0)
    objective.set_data(**dataset.get_instance(**TINY_DATASET).get_data())
    solver.set_objective(**objective.get_objective())
    return objective, solver


def train(solver, objective):
    """What is seen of a training: losses, tokens, weights, evaluation."""
    solver.start()
    trainer, losses = solver.trainer, []
    first = solver.get_result()["report"]["train_loss"]
    tokens = []
    for inputs, targets in trainer.batches(NUM_STEPS):
        tokens.append([inputs.tolist(), targets.tolist()])
        trainer.train_step(inputs, targets)
        losses.append(trainer.pop_train_loss())
    result = objective.evaluate_result(**solver.get_result())
    weights = torch.cat([p.detach().flatten() for p in
                         trainer.model.parameters()])
    return {
        "losses": [first, *losses], "tokens": tokens,
        "val_loss": result["value"],
        "peak_memory_mib": result["peak_memory_mib"],
        "weights": hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
        "num_states": sum(
            bool(state) for state in optimizer_states(trainer.optimizer)
        ),
    }


def optimizer_states(optimizer):
    """The state of each parameter of each optimizer."""
    for part in getattr(optimizer, "optimizers", [optimizer]):
        yield from getattr(part, "base", part).state.values()


def main():
    rank, size = int(sys.argv[1]), int(sys.argv[2])
    store, out, micro_batch_size, *stems = sys.argv[3:]
    torch.set_num_threads(1)
    store = dist.FileStore(store, size)
    bench = Benchmark(ROOT, no_cache=True)
    seen = {}
    for stem in stems:
        place = dist.PrefixStore(stem, store)
        if size > 1:
            take_place(rank, size, place)
        objective, solver = set_up(bench, stem, int(micro_batch_size), size)
        if size > 1:
            solver.world.connect(place, solver.device)
        seen[stem] = solver.world.gather(train(solver, objective))
        solver.world.agree(True)
        solver.world.close()
    if rank == 0:
        with open(out, "w") as file:
            json.dump(seen, file)


if __name__ == "__main__":
    main()
