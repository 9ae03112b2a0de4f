"""Worker processes, one per additional device.

benchopt's process is rank 0 and owns the clock, cache, files and screen. When
a run needs training, it starts a worker for each other device and sends it the
run, pickled as benchopt itself pickles runs. Workers train and evaluate in
step with rank 0, and end when rank 0 ends, for whatever reason.

In a Slurm job of benchopt's submitit backend, every task is a whole benchopt
process: the tasks are the ranks, and no workers are started.
"""
import contextlib
import functools
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist

from benchmark_utils.console.run_summary import open_summary, print_problems
from benchmark_utils.distributed.launch import (
    in_slurm_job,
    join_world,
    rendezvous,
)
from benchmark_utils.distributed.world import TIMEOUT_SECONDS, PeerFailure

# Time limits for workers to start, and to end after the last step. The second
# also limits the wait for the report of a failed rank.
START_SECONDS, GRACE_SECONDS = 600, 10
# Exit code of a worker that ends because another rank has failed.
EXIT_PEER_FAILED = 70
# benchopt must load the benchmark before its folder can be imported.
RUN_WORKER = """
import sys
from benchopt.benchmark import Benchmark
Benchmark(sys.argv[1])
from benchmark_utils.distributed.workers import run_worker
run_worker(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
"""


class WorkerGroup:
    """Lifetime of one run's process group.

    Parameters
    ----------
    solver : TrainingSolver
        The solver of this run, with its world, device and problem.
    warm_up : bool
        Whether the run begins with the solver's ``warm_up``.
    """

    def __init__(self, solver, warm_up: bool):
        self.world = solver.world
        self._processes: list[subprocess.Popen] = []
        self._logs: list[IO[bytes]] = []
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None
        self._num_threads = torch.get_num_threads()
        if self.world.size == 1:
            return
        try:
            if self.world.rank or in_slurm_job():
                store = rendezvous()
            else:
                store = self._start(solver, warm_up)
            self.world.connect(
                store, solver.machine.device, TIMEOUT_SECONDS
            )
        except BaseException:
            self._end()
            raise

    def _start(self, solver, warm_up):
        """Start the workers and wait until all of them are ready."""
        size = self.world.size
        # The ranks share the CPU's cores.
        num_threads = max(1, self._num_threads // size)
        torch.set_num_threads(num_threads)
        store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )
        objective = solver._objective
        run = pickle.dumps((
            objective._dataset, objective, solver, solver._run_context, warm_up
        ))
        for rank in range(1, size):
            log = tempfile.TemporaryFile()
            process = subprocess.Popen(
                [sys.executable, "-c", RUN_WORKER, Path(__file__).parents[2],
                 *map(str, (rank, size, store.port))],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": str(num_threads)},
            )
            self._logs.append(log)
            self._processes.append(process)
            # A worker ends when this pipe closes, which happens even if this
            # process is killed.
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(run)
                process.stdin.flush()
        stop = time.monotonic() + START_SECONDS
        while store.add("ready", 0) < size - 1:
            if failure := self._worker_failure():
                raise RuntimeError(failure)
            if time.monotonic() > stop:
                raise PeerFailure("A worker process did not start in time.")
            time.sleep(0.02)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return store

    def _watch(self):
        """Detect workers that exited without reporting an error."""
        while not self._ended.wait(0.1):
            if failure := self._worker_failure():
                self.world.report_failure(failure)
                return

    def _worker_failure(self):
        """Describe the first worker that failed, None if none has."""
        for rank, (process, log) in enumerate(
            zip(self._processes, self._logs, strict=True), 1
        ):
            code = process.poll()
            if code not in (None, 0, EXIT_PEER_FAILED):
                end = (
                    f"was killed by {signal.Signals(-code).name}"
                    if code < 0 else f"ended with code {code}"
                )
                log.seek(0)
                text = log.read().decode(errors="replace")[-10_000:]
                return f"Rank {rank} {end}.\n{text}"
        return None

    def fail(self, error: BaseException):
        """End all ranks because of an error on this one.

        Raises
        ------
        PeerFailure
            If another rank failed first, with that rank's traceback.
        """
        reason = None
        if self.world.size == 1:
            return self._end()
        if isinstance(error, PeerFailure):
            reason = self.world.wait_for_failure(GRACE_SECONDS)
        elif isinstance(error, Exception):
            self.world.report_failure(
                f"Rank {self.world.rank} failed.\n{traceback_of(error)}"
            )
        self._end()
        if reason:
            # This rank's own traceback would add nothing to that.
            raise PeerFailure(reason) from None

    def shutdown(self):
        """End the ranks of a successful run."""
        if self.world.size > 1:
            self.world.agree(True)
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_SECONDS)
        self._end()

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def _end(self):
        self._ended.set()
        if self._watcher:
            self._watcher.join()
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for log in self._logs:
            log.close()
        self.world.close()
        torch.set_num_threads(self._num_threads)


def on_all_ranks(method: Callable) -> Callable:
    """Decorate a solver's method that all ranks call.

    The first one of a run starts the process group; if it fails on one rank,
    all ranks end.
    """
    @functools.wraps(method)
    def guarded(solver, *arguments):
        if solver.worker_group is None or solver.worker_group.has_ended:
            solver.worker_group = WorkerGroup(
                solver, warm_up=method.__name__ == "warm_up"
            )
        try:
            return method(solver, *arguments)
        except BaseException as error:
            solver.worker_group.fail(error)
            raise

    return guarded


def run_worker(rank: int, size: int, port: int):
    """Train what rank 0 sends to the standard input; a worker's main function.

    ``port`` is that of rank 0's store, on this machine.
    """
    # Ctrl-C reaches every process of a terminal; rank 0 decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    open_summary()
    dataset, objective, solver, context, warm_up = pickle.load(
        sys.stdin.buffer
    )
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        join_world(rank, size, store)
        # What benchopt does before it runs a solver.
        context.attach(objective, dataset, solver)
        objective._set_dataset(dataset)
        solver._set_objective(objective)
        store.add("ready", 1)
        if warm_up:
            solver.warm_up()
        solver.pre_run_hook(None)
        solver.run(functools.partial(_evaluate_if_due, objective, solver))
    except BaseException as error:
        print(traceback_of(error), file=sys.stderr, flush=True)
        print_problems()
        # Skip Python's slow shutdown.
        os._exit(EXIT_PEER_FAILED if isinstance(error, PeerFailure) else 1)


def _evaluate_if_due(objective, solver):
    """A worker's benchopt callback: evaluate when rank 0 does, and return
    whether to continue."""
    if solver.trainer.step not in solver.evaluations:
        return True
    objective(solver.get_result())
    return solver.world.agree(True)


def traceback_of(error):
    return "".join(traceback.format_exception(error))


def _end_with_rank_0():
    sys.stdin.buffer.read()
    os._exit(EXIT_PEER_FAILED)
