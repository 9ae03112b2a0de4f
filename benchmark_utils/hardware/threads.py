"""CPU threads: their number, and how they wait for each other.

A model waits for all threads after every operation. Threads that spin while
they wait are the fastest on quiet cores; when another program takes one of the
cores, the thread that the others wait for is the one that they keep from
running. Threads that sleep don't mind a busy core, but have to be woken, which
a small model does as often as a large one. Hence threads sleep, and a small
model has one; docs/devices.rst has the measurements.

Importing this module lets threads sleep if it is imported before torch, whose
OpenMP library reads the setting once. What the user has set stays.
"""
import functools
import os
import sys

POLICY = "OMP_WAIT_POLICY"
if "torch" not in sys.modules:
    os.environ.setdefault(POLICY, "PASSIVE")
# Up to so many elements of one activation, one thread computes: those of
# 1,024 tokens at a width of 128.
MAX_ALONE = 2**17


def choose_threads(num_elements):
    """Decide how many threads compute, and set torch's number.

    It is torch's own, one per core, or 1 for a small model, unless
    ``OMP_NUM_THREADS`` says otherwise (``benchopt run -j`` sets it for each of
    its processes). It changes the order of sums, and so losses in their last
    digits.

    Parameters
    ----------
    num_elements : int
        Tokens of a step on one rank, times the model's width.

    Returns
    -------
    num_threads : int
    description : str
        The number in words, and the reason.
    """
    import torch

    own_number = _own_number()
    if "OMP_NUM_THREADS" in os.environ:
        reason = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"
    elif num_elements <= MAX_ALONE:
        reason = "the model is small"
        torch.set_num_threads(1)
    else:
        reason = "one per core"
        torch.set_num_threads(own_number)
    num_threads = torch.get_num_threads()
    if num_threads == 1:
        return 1, f"1 thread ({reason})"
    is_asleep = os.environ.get(POLICY, "").upper() == "PASSIVE"
    reason += f"; they wait {'asleep' if is_asleep else 'spinning'}"
    return num_threads, f"{num_threads} threads ({reason})"


@functools.cache
def _own_number():
    """torch's number, before any run has changed it."""
    import torch

    return torch.get_num_threads()
