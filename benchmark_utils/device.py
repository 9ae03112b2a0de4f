"""Where a run computes, in which precision, and how much at a time.

A device is data: the same lines train and evaluate on CPU and on CUDA.
"""
import contextlib
import ctypes
import gc
import importlib.util
import os
import platform
import shutil
import sysconfig
from pathlib import Path

import psutil
import torch

# More tokens per micro-batch gain nothing on a CPU and cost memory; without
# gradients, more of them share the cost of preparing the weights.
CPU_MICRO_BATCH_TOKENS = 4096
CPU_EVALUATION_TOKENS = 16384
# On CUDA, micro-batches of 65,536 tokens give NaN in compiled attention with
# some versions of torch (pytorch/pytorch#171389): stay well below.
CUDA_MICRO_BATCH_TOKENS = 32768
# Share of a GPU's free memory for what a micro-batch keeps for its backward
# pass; the rest is for weights, gradients, optimizer state and logits.
ACTIVATION_SHARE = 0.5

# What a run must compute for compilation to pay for itself. On two cores, it
# takes 50 s and then saves up to 10 % at GPT-2's full size. On CUDA it is a
# minute, and a third of the time; that one is an estimate.
COMPILE_FLOPS = {"cpu": 5e14, "cuda": 3e16}

# Options of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def choose_device(device="auto"):
    """Decide on which device to compute.

    Parameters
    ----------
    device : str
        "auto" is CUDA when there is one; otherwise what torch understands.

    Returns
    -------
    device : torch.device
    reason : str

    Raises
    ------
    ValueError
        If torch can't use the device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), "a CUDA device is available"
        return torch.device("cpu"), "there is no CUDA device"
    try:
        chosen = torch.device(device)
        if chosen.type not in COMPILE_FLOPS:
            raise RuntimeError("It is neither a CPU nor CUDA.")
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device={device!r} can't be used: {str(error).splitlines()[0]} "
            "Use 'auto', 'cpu' or 'cuda'."
        ) from error
    return chosen, "as asked for"


def check_one_process():
    """Raise ``ValueError`` in one of several processes of a launcher: each
    would train the whole problem, all of them on the same device."""
    for variable in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if os.environ.get(variable, "1") != "1":
            raise ValueError(
                f"{variable}={os.environ[variable]}: one run is one process "
                "on one device; several are not supported yet. Start one."
            )


def choose_dtype(dtype, device):
    """Decide in which precision matrix products are computed.

    Parameters
    ----------
    dtype : {"auto", "float32", "bfloat16"}
        "auto" is bfloat16 (autocast: parameters, gradients, optimizer state
        and the loss stay float32) where the device multiplies it natively.
    device : torch.device

    Returns
    -------
    dtype : torch.dtype
    reason : str
    """
    if dtype in ("float32", "bfloat16"):
        return getattr(torch, dtype), "as asked for"
    if dtype != "auto":
        raise ValueError(
            f"dtype={dtype!r} is not one of auto, float32, bfloat16."
        )
    if multiplies_bfloat16(device):
        return torch.bfloat16, "the device multiplies it natively"
    return torch.float32, "the device does not multiply bfloat16 natively"


def multiplies_bfloat16(device):
    """Whether the device has instructions for it, or would emulate it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def dtype_name(dtype):
    """A dtype as parameters and results name it: "float32"."""
    return str(dtype).removeprefix("torch.")


def choose_compile(compile, device, flops):
    """Decide whether to compile the model.

    Parameters
    ----------
    compile : bool or "auto"
        "auto" is yes if the run is long enough to make up for it.
    device : torch.device
    flops : float
        Floating-point operations of the whole run.

    Returns
    -------
    compile : bool
    reason : str
    """
    if compile in (True, False):
        return compile, "as asked for"
    if compile != "auto":
        raise ValueError(
            f"compile={compile!r} is not one of auto, True, False."
        )
    if flops < COMPILE_FLOPS[device.type]:
        return False, "the run is too short to make up for compilation"
    variable, default = {
        "cpu": ("CXX", "g++"), "cuda": ("CC", "gcc")
    }[device.type]
    compiler = os.environ.get(variable, default)
    if not shutil.which(compiler):
        return False, f"there is no {compiler}"
    if device.type == "cuda" and not importlib.util.find_spec("triton"):
        return False, "triton is not installed"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return False, "Python's header files are not installed"
    return True, "the run is long enough to make up for compilation"


def autocast(device, dtype):
    """The context in which forward passes run; no effect for float32."""
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16
    )


def product_dtype(tensor):
    """The dtype in which a matrix product of the tensor is computed: that of
    autocast where autocast is on."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def max_micro_batch(sequence_length, device, bytes_per_token,
                    evaluation=False):
    """Rows that go through a model at once, at most.

    On CUDA as many as half of the free memory holds. On a CPU it does not
    depend on the memory: the same command gives the same losses to the bit.

    Parameters
    ----------
    sequence_length : int
        Tokens per row.
    device : torch.device
    bytes_per_token : int
        What a training step keeps for its backward pass.
    evaluation : bool
        Without a backward pass. Makes no difference on CUDA.

    Returns
    -------
    rows : int
        At least 1.
    """
    tokens = CPU_EVALUATION_TOKENS if evaluation else CPU_MICRO_BATCH_TOKENS
    if device.type == "cuda":
        # What this process has reserved is of an earlier run, and given back.
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device)
        tokens = min(
            CUDA_MICRO_BATCH_TOKENS,
            int(ACTIVATION_SHARE * free) // bytes_per_token,
        )
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


def synchronize(device):
    """Wait for the work queued on the device, so that a clock can be read.

    Nothing is ever queued on a CPU.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def release_memory(device):
    """Return freed memory to the system and measure the peak anew."""
    # A compiled model refers to itself.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    # Linux only, and not in every container.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device):
    """Peak memory in bytes since ``release_memory``: of torch's tensors on
    CUDA, of the whole process on a CPU.

    Only Linux can reset the peak of a process, where that is allowed;
    otherwise it is of the process's whole life, or on macOS its present size.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    memory = psutil.Process().memory_info()
    return getattr(memory, "peak_wset", memory.rss)
