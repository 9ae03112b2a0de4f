"""Runs on the tiny problem, in processes that are killed at a given moment.

Each process is a copy of one that has imported everything ("forkserver" in
Python's multiprocessing): only the first takes its seconds to start.
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

# All that the runs import, once; torch._dynamo when a model is made.
Benchmark(ROOT, no_cache=True).get_solvers()

from benchmark_utils.training import (  # noqa: E402
    checkpoints,
    evaluation,
    trainer,
)

# What happens several times in a run, and a function that is called each time.
MOMENTS = {
    "step": (trainer.Trainer, "accumulate_gradients"),
    "evaluation": (evaluation, "evaluation_rows"),
    # Three files and a folder, then the name; for each checkpoint.
    "writing": (checkpoints, "_force_to_disk"),
}
# All that a run measures, but for clocks and memory.
MEASURED = [
    "step", "stop_val", "tokens", "value", "train_loss", "learning_rate",
    "target_reached", "steps_to_target", "tokens_to_target", "stop_reason",
    "idx_rep",
]


def measured(frame):
    """Of all rows, as lists that compare to the bit."""
    frame = frame.sort_values(["idx_rep", "stop_val"])
    return {name: frame[name].tolist() for name in MEASURED}


class Runs:
    """Runs of one command, one after the other: each goes on where the one
    before was killed.

    Parameters
    ----------
    folder : Path
        Of checkpoints and results.
    solver : str
    num_steps : int
    repetitions : int
    environment : dict
        Variables that the runs see, beside this process's own.
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
        """Start a run; without a moment (its name, which one of them, the
        signal), it comes to its end."""
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(["killed_run"])
        self._output = tempfile.NamedTemporaryFile("r", errors="replace")
        # So named, it is as if it had been started from a terminal.
        process = processes.Process(name="MainProcess", target=run_once, args=(
            self._output.name, self.environment, self.solver, self.num_steps,
            self.repetitions, str(self.results), *when,
        ))
        # What these processes are copies of is one of its own, and knows only
        # the environment.
        with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(
            [str(ROOT), str(ROOT / "tests")]
        )):
            process.start()
        return process

    def wait(self, process, seconds=300):
        """Return the exit code, negative for a signal, and what was printed.
        """
        process.join(seconds)
        if process.is_alive():
            process.kill()
            raise TimeoutError(self._output.read())
        with self._output:
            return process.exitcode, self._output.read()

    def run(self, *when):
        return self.wait(self.start(*when))

    def rows(self):
        return measured(read_plain(self.results))

    def times_resumed(self):
        return int(read_plain(self.results).times_resumed.max())

    def newest(self):
        """Name of the newest checkpoint, None if there is none."""
        return max((path.name for path in self.left()
                    if path.name.startswith(checkpoints.PREFIX)), default=None)

    def left(self):
        """Paths of what the runs have left of their checkpoints."""
        return list((self.folder / "data" / "checkpoints").rglob("*"))


def run_once(
        output, environment, solver, num_steps, repetitions, results, *when):
    """One run, in this process."""
    file = os.open(output, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    os.environ.update(environment)
    # As in a process that was started from a terminal: no signal is ignored;
    # and what tqdm locks is unlinked at once, so that it is nobody's if the
    # process is killed.
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
    """Have this process signalled in the middle of the count-th one."""
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
