"""Runs on the tiny problem, in processes that are killed at a given moment.

Processes are forked from one that has imported everything ("forkserver" of
multiprocessing), so only the first takes seconds to start.
"""
import multiprocessing
import os
import signal
import sys
import tempfile
from unittest import mock

import torch
import torch._dynamo
from benchopt.benchmark import Benchmark
from benchopt.cli.main import run

from conftest import (
    ROOT,
    TINY_DATASET,
    TINY_OBJECTIVE,
    TINY_SOLVER,
    read_plain,
    selector,
)

# Import once what the runs need; a model would import torch._dynamo.
Benchmark(ROOT, no_cache=True).get_solvers()

from benchmark_utils.training import (  # noqa: E402
    checkpoints,
    evaluation,
    trainer,
)

# Repeated parts of a run, and the function that each of them calls.
MOMENTS = {
    "step": (trainer.Trainer, "accumulate_gradients"),
    "evaluation": (evaluation, "evaluation_rows"),
    # Three files, the folder and its parent, for each checkpoint.
    "writing": (checkpoints, "_force_to_disk"),
}
# All measurements of a run, except times and memory.
MEASURED = [
    "step", "stop_val", "tokens", "value", "train_loss", "learning_rate",
    "target_reached", "steps_to_target", "tokens_to_target", "stop_reason",
    "idx_rep",
]


def measured(frame):
    """Return the measurements as lists, to be compared to the bit."""
    frame = frame.sort_values(["idx_rep", "stop_val"])
    return {name: frame[name].tolist() for name in MEASURED}


class Runs:
    """Successive runs of one command: each resumes the killed one before.

    Checkpoints and results are in ``folder``; ``environment`` adds variables.
    """

    def __init__(self, folder, solver="AdamW", num_steps=24, repetitions=1,
                 **environment):
        self.solver, self.num_steps = solver, num_steps
        self.repetitions = repetitions
        self.folder, self.results = folder, folder / "results.parquet"
        self.environment = environment | {
            "BENCHOPT_DATA_HOME": str(folder / "data")
        }

    def start(self, *when):
        """Start a run, to be killed at a moment: its name, its count, the
        signal."""
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(["killed_run"])
        self._output = tempfile.NamedTemporaryFile("r", errors="replace")
        # benchopt's own process is named so.
        process = processes.Process(name="MainProcess", target=run_once, args=(
            self._output.name, self.environment, self.solver, self.num_steps,
            self.repetitions, str(self.results), *when,
        ))
        # The forkserver inherits only the environment.
        with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(
            [str(ROOT), str(ROOT / "tests")]
        )):
            process.start()
        return process

    def wait(self, process, seconds=300):
        """Return the exit code, negative for a signal, and the output."""
        process.join(seconds)
        if process.is_alive():
            process.kill()
            raise TimeoutError(self._output.read())
        with self._output:
            return process.exitcode, self._output.read()

    def run(self, *when):
        return self.wait(self.start(*when))

    def evaluations(self):
        return measured(read_plain(self.results))

    def times_resumed(self):
        return int(read_plain(self.results).times_resumed.max())

    def newest(self):
        """Name of the newest checkpoint, None if there is none."""
        return max((path.name for path in self.left()
                    if path.name.startswith(checkpoints.PREFIX)), default=None)

    def left(self):
        """Paths of the remaining files of checkpoints."""
        return list((self.folder / "data" / "checkpoints").rglob("*"))


def run_once(
        output, environment, solver, num_steps, repetitions, results, *when):
    """One run, in this process."""
    file = os.open(output, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    os.environ.update(environment)
    # As in a process started from a terminal, no signal is ignored. With
    # "fork", tqdm's lock is unlinked at once and not left by a killed process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    if when:
        kill_in(*when)
    run([
        str(ROOT), "-d", selector("Simulated", TINY_DATASET),
        "-o", selector("nanoGPT", TINY_OBJECTIVE | {"checkpoint_every": 3}),
        "-s", selector(solver, TINY_SOLVER | {"num_steps": num_steps}),
        "-r", str(repetitions), "--no-timeout", "--max-runs", "10000",
        "--no-cache", "--no-plot",
        "--output", results,
    ])


def kill_in(moment, count, number="SIGKILL"):
    """Signal this process in the middle of the count-th call."""
    owner, name = MOMENTS[moment]
    function = getattr(owner, name)
    calls = 0

    def killing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), getattr(signal, number))
        return function(*args, **kwargs)

    setattr(owner, name, killing)
