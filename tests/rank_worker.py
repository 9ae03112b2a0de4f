"""A rank that trains solvers for a few steps and says what it saw.

    python rank_worker.py RANK SIZE FOLDER MICRO_BATCH_SIZE [SOLVER ...]

Rank 0 writes one JSON dict, from a solver file's stem to what all ranks saw.
Half-way, each training is saved and restored.
"""
import hashlib
import json
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from benchopt.benchmark import Benchmark
from benchopt.utils.run_context import RunContext

from benchmark_utils.places import take_place
from benchmark_utils.training import checkpoints
from conftest import ROOT, TINY_DATASET, TINY_OBJECTIVE

NUM_STEPS = 30


def set_up(bench, stem, micro_batch_size, size, **parameters):
    """An objective and a solver on the tiny problem, not started yet."""
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


def train(trainer, objective, checkpoint=None):
    """What is seen of a training: losses, tokens, weights, evaluation."""
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
    row = objective.evaluate_result(
        trainer.evaluated, {"step": NUM_STEPS, "train_loss": losses[-1]}
    )
    states = optimizer_states(trainer.optimizer)
    return {
        "losses": losses, "tokens": tokens, "val_loss": row["value"],
        "weights": weights_hash(trainer),
        "num_states": sum(bool(state) for state in states),
    }


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


def opinions(world, bench, size):
    """What ranks agree on where each sees something else."""
    _, solver = set_up(bench, "adamw", "auto", size)
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


def optimizer_states(optimizer):
    """The state of each parameter of each optimizer."""
    for part in getattr(optimizer, "optimizers", [optimizer]):
        yield from getattr(part, "base", part).state.values()


def main():
    rank, size = int(sys.argv[1]), int(sys.argv[2])
    folder, micro_batch_size = Path(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    bench = Benchmark(ROOT, no_cache=True)
    seen = {}
    for stem in sys.argv[5:]:
        place = dist.PrefixStore(stem, store)
        take_place(rank, size, place)
        objective, solver = set_up(bench, stem, micro_batch_size, size)
        world = solver.world
        world.connect(place, solver.machine.device)
        solver.start()
        report = train(solver.trainer, objective, folder / stem)
        report["opinions"] = opinions(world, bench, size)
        seen[stem] = world.gather(report)
        world.agree(True)
        world.close()
    if rank == 0:
        (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
