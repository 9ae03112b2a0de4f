"""A run on the tiny problem that kills its own process.

    python killed_run.py SOLVER REPETITIONS OUTPUT [MOMENT COUNT [SIGNAL]]

MOMENT is "step", "evaluation" or "writing" (of a checkpoint); the process gets
the signal, SIGKILL by default, in the middle of the COUNT-th of it.
"""
import os
import signal
import sys
from pathlib import Path

import torch
from benchopt.benchmark import Benchmark
from benchopt.cli.main import run

from conftest import TINY_DATASET, TINY_OBJECTIVE, TINY_SOLVER, selector

ROOT = Path(__file__).parents[1]


def kill_in(owner, name, count, number):
    function = getattr(owner, name)
    calls = 0

    def killing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    setattr(owner, name, killing)


def main():
    solver, repetitions, output, *when = sys.argv[1:]
    torch.set_num_threads(1)
    Benchmark(ROOT, no_cache=True)
    from benchmark_utils.training import checkpoints, evaluation, trainer
    if when:
        moment, count, *number = when
        owner, name = {
            "step": (trainer.Trainer, "accumulate_gradients"),
            "evaluation": (evaluation, "evaluation_rows"),
            "writing": (checkpoints, "_force_to_disk"),
        }[moment]
        number = getattr(signal, number[0] if number else "SIGKILL")
        kill_in(owner, name, int(count), number)
    run([
        str(ROOT), "-d", selector("Simulated", TINY_DATASET),
        "-o", selector("nanoGPT", TINY_OBJECTIVE | {"checkpoint_every": 3}),
        "-s", selector(solver, TINY_SOLVER | {"num_steps": 24}),
        "-r", repetitions, "--no-timeout", "--max-runs", "10000",
        "--no-cache", "--no-plot", "--output", output,
    ])


if __name__ == "__main__":
    main()
