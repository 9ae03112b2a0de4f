"""Places: which of the ranks this process is, and where it meets the others.

A process is rank 0, which starts its followers (``followers.py``), or one of
these followers, or a task of a Slurm job that submitit started.
"""
import multiprocessing
import os
import shlex
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from benchmark_utils.distributed.world import World
from benchmark_utils.hardware.device import KINDS

# Launchers, and the environment variables in which each of them tells a
# process how many there are and which rank it is.
LAUNCHERS = [
    ("torchrun", "WORLD_SIZE", "RANK"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
]

# Rank, size and store of a process that follows rank 0.
_membership = None


def join_world(rank, size, store):
    """Be one of several ranks, which meet in a store."""
    global _membership
    _membership = rank, size, store


def check_launcher():
    """End the program if a launcher started several processes of it: each
    would run the whole benchmark, and all would write to one cache and one
    file of results.

    A task of a job that submitit started is right, and takes its GPU here.

    Raises
    ------
    SystemExit
        With a sentence for the user in one of the processes, and after five
        seconds in the others.
    """
    if in_slurm_job():
        if torch.cuda.is_available():
            # A task may see one GPU, or all of its node.
            torch.cuda.set_device(
                int(os.environ["SLURM_LOCALID"]) % torch.cuda.device_count()
            )
        return
    for launcher, size_name, rank_name in LAUNCHERS:
        size = os.environ.get(size_name, "1")
        if size == "1":
            continue
        if os.environ.get(rank_name, "0") != "0":
            # A launcher that sees a process end kills the others: rank 0 must
            # be the first, because it is the one that speaks.
            time.sleep(5)
            raise SystemExit(1)
        raise SystemExit(
            f"{launcher} started {size} processes, but benchopt itself starts "
            f"one per GPU that it sees (num_devices={size} among the "
            f"objective's parameters asks for {size}; configs/slurm.yml is "
            f"for several nodes): without {launcher}, type {_command()}"
        )


def _command():
    """The command line of this program, without what launched it."""
    program, *arguments = sys.argv
    if "benchopt" in (Path(program).name, Path(program).parent.name):
        return shlex.join(["benchopt", *arguments])
    return shlex.join(["python", program, *arguments])


def choose_world(num_devices, device, batch_size):
    """Decide how many ranks train a model, and which one this process is.

    Parameters
    ----------
    num_devices : int or "auto"
        Number of ranks. "auto" is the number of tasks in a Slurm job, and
        elsewhere that of the visible GPUs, or as many of them as can share a
        batch equally; 1 on a CPU.
    device : torch.device
    batch_size : int
        Rows per step.

    Returns
    -------
    world : World
        The ranks, not connected yet.
    reason : str
        Why there are so many: a few words to print.

    Raises
    ------
    ValueError
        If there are too few devices, or not one task for each, or if several
        runs at the same time would take the same devices.
    """
    if _membership is not None:
        rank, size, _ = _membership
        return World(rank, size), "as rank 0 decided"
    tasks = _slurm_tasks()
    if tasks > 1:
        if num_devices not in ("auto", tasks):
            raise ValueError(
                f"num_devices={num_devices} but the Slurm job has {tasks} "
                "tasks: it needs one per device, slurm_nodes times "
                "slurm_ntasks_per_node."
            )
        return World(int(os.environ["SLURM_PROCID"]), tasks), "Slurm's tasks"
    # A device that is named by its number, as cuda:1, is one device.
    count = KINDS[device.type].count
    found = 1 if device.index is not None or not count else count()
    size, reason = num_devices, "as asked for"
    if num_devices == "auto":
        size = max(n for n in range(1, found + 1) if batch_size % n == 0)
        reason = f"{found} found"
    if count and size > found:
        raise ValueError(
            f"num_devices={num_devices} is more than the {found} of device "
            f"{device} that this process can see."
        )
    # benchopt's runs are in its own process unless there are several at once.
    if size > 1 and multiprocessing.current_process().name != "MainProcess":
        raise ValueError(
            f"num_devices={num_devices} lets each run take {size} devices, "
            "and the runs that -j starts at the same time would take the same "
            "ones: leave out -j, or choose num_devices=1."
        )
    return World(0, size), reason


def _slurm_tasks():
    """Number of tasks of the Slurm job that submitit started this process in;
    1 elsewhere."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return 1
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def in_slurm_job():
    """Whether this process is one of several tasks of a Slurm job."""
    return _slurm_tasks() > 1


def rendezvous():
    """Return the store where this rank meets the others."""
    if _membership is not None:
        return _membership[-1]
    from submitit.helpers import TorchDistributedEnvironment

    environment = TorchDistributedEnvironment()
    return dist.TCPStore(
        environment.master_addr, environment.master_port,
        world_size=environment.world_size,
        is_master=environment.rank == 0,
    )
