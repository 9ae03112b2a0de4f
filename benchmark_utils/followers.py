"""Followers: the processes that join benchopt's own to train on one node.

benchopt's process is rank 0: it has the clock, the cache, the files and the
screen. Once it is certain that there is something to train, it starts a
process for each other device and sends it the run, as benchopt itself sends
runs to other processes. A follower does what rank 0 does, and evaluates when
rank 0 does. When rank 0 ends, however that may be, so do its followers.

Within a Slurm job of benchopt's submitit backend, where every task is a whole
benchopt, tasks are the ranks, and nothing is started.
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
from pathlib import Path

import torch
import torch.distributed as dist

from benchmark_utils.device import KINDS
from benchmark_utils.training import ranks
from benchmark_utils.training.ranks import RankLost, World

# Seconds for followers to start; and for them to end after the last step, or
# for the reason why a rank has failed to become known.
START_SECONDS, GRACE_SECONDS = 600, 10
# A follower that was let down by another rank: the reason is not its own.
LET_DOWN = 70
# benchopt's folder has to be loaded before anything in it can be imported.
FOLLOW = """
import sys
from benchopt.benchmark import Benchmark
Benchmark(sys.argv[1])
from benchmark_utils.followers import follow
follow(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
"""
# What launchers call the number of their processes and the process's rank.
LAUNCHERS = [
    ("torchrun", "WORLD_SIZE", "RANK"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
]

# The rank of a process that follows, and the store where it met rank 0.
_place = None


def take_place(rank, size, store):
    """Be one of several ranks, which meet in a store."""
    global _place
    _place = rank, size, store


def check_launcher():
    """End the program if a launcher started several of it: each would run the
    whole benchmark, with one cache and one file of results between them.

    In a task of submitit's, which is right, take the task's GPU.
    """
    if _slurm_tasks() > 1:
        if torch.cuda.is_available():
            # A task may see one GPU, or all of its node.
            torch.cuda.set_device(
                int(os.environ["SLURM_LOCALID"]) % torch.cuda.device_count()
            )
        return
    for launcher, size_name, rank_name in LAUNCHERS:
        size = os.environ.get(size_name, "1")
        if size != "1":
            if os.environ.get(rank_name, "0") != "0":
                # One process speaks, and a launcher that sees one end kills
                # the others.
                time.sleep(5)
                raise SystemExit(1)
            raise SystemExit(
                f"{launcher} started {size} processes, but benchopt starts "
                f"them itself: type 'benchopt run . -o "
                f'"nanoGPT[num_devices={size}]"\' without {launcher}, or use '
                "configs/slurm.yml for several nodes."
            )


def choose_world(num_devices, device, batch_size):
    """Decide how many ranks train a model, and which one this process is.

    Parameters
    ----------
    num_devices : int or "auto"
        "auto" is one per task in a Slurm job, and otherwise all visible GPUs
        that can share a batch equally; 1 on a CPU.
    device : torch.device
    batch_size : int
        Rows per step.

    Returns
    -------
    world : World
        Not connected yet.
    reason : str

    Raises
    ------
    ValueError
        If there are too few devices, or not one task for each.
    """
    if _place is not None:
        rank, size, _ = _place
        return World(rank, size), "as rank 0"
    tasks = _slurm_tasks()
    if tasks > 1:
        if num_devices not in ("auto", tasks):
            raise ValueError(
                f"num_devices={num_devices} but the Slurm job has {tasks} "
                "tasks: it needs one per device, slurm_nodes times "
                "slurm_ntasks_per_node."
            )
        return World(int(os.environ["SLURM_PROCID"]), tasks), "Slurm's tasks"
    # A device by number is one device.
    count = KINDS[device.type].count
    found = 1 if device.index is not None or not count else count()
    if num_devices == "auto":
        size = max(n for n in range(1, found + 1) if batch_size % n == 0)
        return World(0, size), f"{found} found"
    if type(num_devices) is not int or num_devices < 1:
        raise ValueError(
            f"num_devices={num_devices!r} must be a whole number above 0, or "
            "auto."
        )
    if count and num_devices > found:
        raise ValueError(
            f"num_devices={num_devices} is more than the {found} of device "
            f"{device} that this process can see."
        )
    return World(0, num_devices), "as asked for"


def _slurm_tasks():
    """Tasks of the job that submitit started this process in; 1 elsewhere."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return 1
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


class Gathering:
    """The ranks of one run, from their meeting to their parting.

    Parameters
    ----------
    solver : TrainingSolver
        It knows its world, device and problem.
    warm_up : bool
        Whether the run begins with the solver's ``warm_up``.
    """

    def __init__(self, solver, warm_up):
        self.world = solver.world
        self._processes, self._logs = [], []
        self._ended, self._watcher = threading.Event(), None
        self._num_threads = torch.get_num_threads()
        if self.world.size == 1:
            return
        try:
            if self.world.rank or _slurm_tasks() > 1:
                store = _meet()
            else:
                store = self._start(solver, warm_up)
            self.world.connect(store, solver.device, ranks.TIMEOUT_SECONDS)
        except BaseException:
            self._end()
            raise

    def _start(self, solver, warm_up):
        """Start the followers, and wait until all of them are there."""
        size = self.world.size
        # The processor is shared, too.
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
                [sys.executable, "-c", FOLLOW, Path(__file__).parents[1],
                 *map(str, (rank, size, store.port))],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": str(num_threads)},
            )
            self._logs.append(log)
            self._processes.append(process)
            # It stays open: its end is how a follower learns of ours.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(run)
                process.stdin.flush()
        stop = time.monotonic() + START_SECONDS
        while store.add("ready", 0) < size - 1:
            failure = self._death()
            if failure:
                raise RuntimeError(failure)
            if time.monotonic() > stop:
                raise RankLost("A follower did not start.")
            time.sleep(0.02)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return store

    def _watch(self):
        """Report followers that died without a word."""
        while not self._ended.wait(0.1):
            if failure := self._death():
                self.world.report_failure(failure)
                return

    def _death(self):
        """What is known of a follower that has ended by its own fault."""
        for rank, (process, log) in enumerate(
            zip(self._processes, self._logs), 1
        ):
            code = process.poll()
            if code not in (None, 0, LET_DOWN):
                end = (
                    f"was killed by {signal.Signals(-code).name}"
                    if code < 0 else f"ended with code {code}"
                )
                log.seek(0)
                text = log.read().decode(errors="replace")[-10_000:]
                return f"Rank {rank} {end}.\n{text}"
        return None

    def fail(self, error):
        """End all ranks because of an error on this one.

        Raises
        ------
        RankLost
            With the traceback of the rank that failed first, if it is
            another one.
        """
        reason = None
        if self.world.size == 1:
            return
        if isinstance(error, RankLost):
            reason = self.world.wait_for_failure(GRACE_SECONDS)
        elif isinstance(error, Exception):
            self.world.report_failure(
                f"Rank {self.world.rank} failed.\n{traceback_of(error)}"
            )
        self._end()
        if reason:
            # Our own traceback says nothing that theirs doesn't.
            raise RankLost(reason) from None

    def part(self):
        """End a run that has gone well."""
        if self.world.size > 1:
            self.world.agree(True)
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_SECONDS)
        self._end()

    def _end(self):
        self._ended.set()
        if self._watcher:
            self._watcher.join()
        for process in self._processes:
            process.kill()
            process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for log in self._logs:
            log.close()
        self.world.close()
        torch.set_num_threads(self._num_threads)


def together(method):
    """Decorator of what all ranks do, methods of a solver: the ranks meet
    before the first one, and if one of them fails, all end."""
    @functools.wraps(method)
    def guarded(solver, *arguments):
        if solver.gathering is None:
            solver.gathering = Gathering(
                solver, warm_up=method.__name__ == "warm_up"
            )
        try:
            return method(solver, *arguments)
        except BaseException as error:
            gathering, solver.gathering = solver.gathering, None
            gathering.fail(error)
            raise

    return guarded


def _meet():
    """The store where this rank meets the others."""
    if _place is not None:
        return _place[-1]
    from submitit.helpers import TorchDistributedEnvironment

    environment = TorchDistributedEnvironment()
    return dist.TCPStore(
        environment.master_addr, environment.master_port,
        world_size=environment.world_size,
        is_master=environment.rank == 0,
    )


def follow(rank, size, port):
    """Be a follower: train what comes through the standard input."""
    # Ctrl-C reaches every process of a terminal. Rank 0 decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    take_place(rank, size, store)
    dataset, objective, solver, context, warm_up = pickle.load(
        sys.stdin.buffer
    )
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    try:
        # As benchopt does before it runs a solver.
        context.attach(objective, dataset, solver)
        objective._set_dataset(dataset)
        solver._set_objective(objective)
        store.add("ready", 1)
        if warm_up:
            solver.warm_up()
        solver.pre_run_hook(None)
        solver.run(functools.partial(_evaluate_if_due, objective, solver))
    except RankLost:
        os._exit(LET_DOWN)
    except BaseException as error:
        # Without Python's tidying up, which can take a while.
        print(traceback_of(error), file=sys.stderr, flush=True)
        os._exit(1)


def _evaluate_if_due(objective, solver):
    """What benchopt's callback is on rank 0: whether to go on."""
    if not solver.is_evaluated():
        return True
    objective(solver.get_result())
    return solver.world.agree(True)


def traceback_of(error):
    return "".join(traceback.format_exception(error))


def _end_with_rank_0():
    sys.stdin.buffer.read()
    os._exit(LET_DOWN)
