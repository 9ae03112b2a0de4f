"""Launch detection: this process's rank and rendezvous.

A process is rank 0, which starts the workers (``workers.py``), or a worker, or
a task of a Slurm job that submitit started.
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

# Launchers, and the environment variables that hold the number of processes
# and the rank of one.
LAUNCHERS = [
    ("torchrun", "WORLD_SIZE", "RANK"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
]

# Rank, size and store of a process that was told its rank.
_assigned: tuple[int, int, dist.Store] | None = None


def join_world(rank: int, size: int, store: dist.Store):
    """Set this process's rank, and the store for the rendezvous."""
    global _assigned
    _assigned = rank, size, store


def check_launcher():
    """End the program if a launcher started several processes of it.

    Each would run the whole benchmark and write to the same cache and file of
    results. Tasks that submitit started are fine; each selects its GPU here.

    Raises
    ------
    SystemExit
        With a sentence for the user in rank 0, and after five seconds in the
        other processes.
    """
    if in_slurm_job():
        if torch.cuda.is_available():
            # A task sees one GPU or all of its node.
            torch.cuda.set_device(
                int(os.environ["SLURM_LOCALID"]) % torch.cuda.device_count()
            )
        return
    for launcher, size_name, rank_name in LAUNCHERS:
        size = os.environ.get(size_name, "1")
        if size == "1":
            continue
        if os.environ.get(rank_name, "0") != "0":
            # A launcher that sees a process end kills the others. Rank 0
            # prints the message, so it must end first.
            time.sleep(5)
            raise SystemExit(1)
        raise SystemExit(
            f"{launcher} started {size} processes, but benchopt itself starts "
            f"one per visible GPU (num_devices={size} in the objective's "
            f"brackets asks for {size}; configs/slurm.yml is for several "
            f"nodes): without {launcher}, type {_command()}"
        )


def _command():
    """Return this program's command line without the launcher."""
    program, *arguments = sys.argv
    if "benchopt" in (Path(program).name, Path(program).parent.name):
        return shlex.join(["benchopt", *arguments])
    return shlex.join(["python", program, *arguments])


def choose_world(
    num_devices: int | str, device: torch.device, batch_size: int
) -> tuple[World, str]:
    """Decide how many ranks train a model, and which one this process is.

    Parameters
    ----------
    num_devices : int or "auto"
        "auto" is the number of tasks in a Slurm job; elsewhere the most
        visible GPUs that can share a batch equally, and 1 on a CPU.
    device : torch.device
    batch_size : int
        Rows per step.

    Returns
    -------
    world : World
        Not connected yet.
    reason : str
        Reason for the number of ranks.

    Raises
    ------
    ValueError
        If there are too few devices or tasks, or if simultaneous runs would
        use the same devices.
    """
    if _assigned is not None:
        rank, size, _ = _assigned
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
    # A device named by its number, such as cuda:1, is a single device.
    count = KINDS[device.type].count
    found = 1 if device.index is not None or not count else count()
    if num_devices == "auto":
        size = max(n for n in range(1, found + 1) if batch_size % n == 0)
        reason = f"{found} found"
    else:
        size, reason = int(num_devices), "as asked for"
    if count and size > found:
        raise ValueError(
            f"num_devices={num_devices} is more than the {found} that this "
            f"process sees for device={device}."
        )
    # benchopt trains in its own process, unless -j starts several.
    if size > 1 and multiprocessing.current_process().name != "MainProcess":
        raise ValueError(
            f"num_devices={num_devices} gives each run {size} devices, and "
            "the simultaneous runs of -j would use the same ones: leave out "
            "-j, or choose num_devices=1."
        )
    return World(0, size), reason


def _slurm_tasks():
    """Return the number of tasks of submitit's Slurm job; 1 elsewhere."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return 1
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def in_slurm_job() -> bool:
    """Tell whether this process is one of several tasks of a Slurm job."""
    return _slurm_tasks() > 1


def rendezvous() -> dist.Store:
    """Return the store that connects this rank to the others."""
    if _assigned is not None:
        return _assigned[-1]
    from submitit.helpers import TorchDistributedEnvironment

    environment = TorchDistributedEnvironment()
    return dist.TCPStore(
        environment.master_addr, environment.master_port,
        world_size=environment.world_size,
        is_master=environment.rank == 0,
    )
