"""Threads on a CPU: how many compute, and how they wait for each other.

Importing this module lets threads sleep while they wait for each other, if it
is imported before torch, whose OpenMP library reads the setting once. They
would spin, and a small model waits after every operation: when another program
takes one of the cores, the one that the others wait for is the one that they
keep from running. With two threads and nine busy processes on two cores, a
step of a small model took 3.4 to 3.8 s spinning, 0.5 to 0.9 s asleep, and
0.7 s with a single thread; on quiet cores, sleeping costs 3 %. A policy that
the user has set stays.
"""
import os
import sys

POLICY = "OMP_WAIT_POLICY"
if "torch" not in sys.modules:
    os.environ.setdefault(POLICY, "PASSIVE")


def choose_threads():
    """Decide how many threads compute.

    torch's own number, one per core unless ``OMP_NUM_THREADS`` says otherwise
    (``benchopt run -j`` sets it for each of its processes). It changes the
    order of sums, and so losses in their last digits.

    Returns
    -------
    num_threads : int
    reason : str
    """
    import torch

    reason = "one per core"
    if "OMP_NUM_THREADS" in os.environ:
        reason = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"
    policy = os.environ.get(POLICY, "").upper()
    waiting = "asleep" if policy == "PASSIVE" else "spinning"
    return torch.get_num_threads(), f"{reason}; they wait {waiting}"
