"""Places: which of the ranks this process is, and where it meets the others.

A process is rank 0 and starts its followers (``followers.py``), or it is such
a follower, or a task of a Slurm job that submitit started.
"""
import os
import time

import torch
import torch.distributed as dist

from benchmark_utils.device import KINDS
from benchmark_utils.training.ranks import World

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
    if in_slurm_job():
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


def in_slurm_job():
    """Whether this process is one of several tasks of a job."""
    return _slurm_tasks() > 1


def meet():
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
