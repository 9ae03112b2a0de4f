"""Memory: the size of a micro-batch, and the peak of a run."""
import contextlib
import ctypes
import gc
import platform
import sys
from pathlib import Path

import psutil

from benchmark_utils.hardware.device import KINDS

# Share of a GPU's free memory for what a micro-batch keeps for its backward
# pass; the rest is for weights, gradients, optimizer state and logits.
ACTIVATION_SHARE = 0.5

# Options of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def max_micro_batch(sequence_length, device, bytes_per_token):
    """Rows that go through a model at once in training, at most.

    On a GPU as many as half of the free memory holds. On a CPU it does not
    depend on the memory: the same command gives the same losses to the bit.

    Parameters
    ----------
    sequence_length : int
        Tokens per row.
    device : torch.device
    bytes_per_token : int
        Memory per token that a training step keeps for its backward pass.

    Returns
    -------
    rows : int
        At least 1.
    """
    kind = KINDS[device.type]
    tokens = kind.micro_batch_tokens
    if kind.free_memory:
        free = kind.free_memory(device)
        tokens = min(tokens, int(ACTIVATION_SHARE * free) // bytes_per_token)
    return max(1, tokens // sequence_length)


def choose_micro_batch(num_rows, max_rows, micro_batch_size="auto"):
    """Rows per micro-batch of a training step.

    It changes memory and speed, never the mathematics: gradients and losses
    are averaged over the micro-batches, which are all of the same size.

    Parameters
    ----------
    num_rows : int
        Rows that one rank computes per step.
    max_rows : int
        From ``max_micro_batch``.
    micro_batch_size : int or "auto"
        "auto" is the largest up to ``max_rows`` that divides the rows.

    Returns
    -------
    micro_batch_size : int

    Raises
    ------
    ValueError
        If the size asked for does not divide the rows.
    """
    if micro_batch_size == "auto":
        return max(
            size for size in range(1, min(num_rows, max_rows) + 1)
            if num_rows % size == 0
        )
    if (
        type(micro_batch_size) is not int or micro_batch_size < 1
        or num_rows % micro_batch_size
    ):
        raise ValueError(
            f"micro_batch_size={micro_batch_size!r} does not divide the "
            f"{num_rows} rows that each rank computes per step."
        )
    return micro_batch_size


def keep_freed_memory():
    """Let the process keep large blocks that it frees, to use them again.

    glibc would return each to the kernel and have it zero the pages anew at
    the next allocation: hundreds of thousands of page faults per step, for a
    large vocabulary more time than the training itself. There is no effect on
    the numbers, and none at all where the C library is another.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        # Never, says the manual.
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def release_memory(device):
    """Return freed memory to the system and measure the peak anew."""
    # A compiled model refers to itself.
    gc.collect()
    if KINDS[device.type].release_memory:
        KINDS[device.type].release_memory(device)
        return
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    # The system's own peak starts anew: on Linux, and not in every container.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    _released.clear()
    _released.update(process_memory())


def peak_memory(device):
    """Peak memory in bytes since ``release_memory``: of torch's tensors on a
    GPU; on a CPU by how much the process's own memory has grown.

    Own memory has no file behind it: pages of token shards and of libraries
    depend on what else was read, and don't count. Its peak is what the process
    has now, since what was freed is kept (see ``keep_freed_memory``). Where it
    isn't, the peak of all memory without that of files is a lower bound of it
    on Linux; elsewhere the present size is all there is.
    """
    if KINDS[device.type].peak_memory:
        return KINDS[device.type].peak_memory(device)
    now, own = process_memory(), 0
    # Otherwise it is an earlier run's.
    if now["peak"] > _released["peak"]:
        own = now["peak"] - max(now["files"], _released["files"])
    return max(0, max(own, now["own"]) - _released["own"])


def process_memory():
    """Bytes of this process: "own", which no file is behind, that of "files"
    that are mapped, and the "peak" of both; 0 where they are not known."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        pairs = (line.split(":") for line in lines if line.endswith(" kB"))
        sizes = {name: 1024 * int(size.split()[0]) for name, size in pairs}
        return {
            "own": sizes["RssAnon"] + sizes["VmSwap"],
            "files": sizes["RssFile"] + sizes["RssShmem"],
            "peak": sizes["VmHWM"],
        }
    process = psutil.Process()
    if sys.platform == "win32":
        own = process.memory_info().private
    else:
        own = process.memory_full_info().uss
    return {"own": own, "files": 0, "peak": 0}


# The process's memory when it was last released: all of a process is of one
# run at a time.
_released = process_memory()
