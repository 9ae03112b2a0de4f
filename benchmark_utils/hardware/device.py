"""Kinds of devices: one table of what differs between them.

The same lines train on a CPU, on CUDA and on Apple's GPUs ("mps"): whatever
differs is a column of ``KINDS``. Only the CPU's row has been measured.
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import torch


class Kind(NamedTuple):
    """What one kind of device does: a row of ``KINDS``.

    Functions take the ``torch.device``, but for ``is_available``.

    Attributes
    ----------
    title : str
        Name in sentences.
    is_available : function, returns bool
    count, backend : function or None, str or None
        Number of them that a process sees (None: processes can share one),
        and the backend of torch.distributed that connects them.
    worthwhile_flops : float
        Operations per training step from which on "auto" takes the device: a
        GPU with little to do waits for the processor to start its kernels.
    name : function, returns str
        The device as results name it.
    multiplies_bfloat16 : function, returns bool
    compile_flops : float
        What a run must compute for compilation to pay for itself.
    pins_memory : bool
        Whether batches are copied to it from page-locked memory, while it
        computes, two bytes per token.
    synchronize : function
        Waits for the work queued on the device.
    get_rng_state, set_rng_state : functions or None
        The device's own random generator: the first returns its state, a
        tensor; the second takes state and device. None where it is the CPU's.
    release_memory, peak_memory, free_memory : functions or None
        torch's allocator: return what is unused to the system and start the
        peak anew; the peak and what a process can still get, in bytes.
        None where the memory is the system's: see hardware/memory.py.
    micro_batch_tokens, evaluation_tokens : int
        Most tokens that go through the model at a time, with and without
        gradients.
    chunk_rows : int
        Rows of logits at a time: see models/cross_entropy.py.
    evaluation_columns : int
        Number of which the columns of logits are a multiple in an evaluation.
    """

    title: str
    is_available: Callable
    count: Callable | None
    backend: str | None
    worthwhile_flops: float
    name: Callable
    multiplies_bfloat16: Callable
    compile_flops: float
    pins_memory: bool
    synchronize: Callable
    get_rng_state: Callable | None
    set_rng_state: Callable | None
    release_memory: Callable | None
    peak_memory: Callable | None
    free_memory: Callable | None
    micro_batch_tokens: int
    evaluation_tokens: int
    chunk_rows: int
    evaluation_columns: int


def _cpu_multiplies_bfloat16(device):
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def _cuda_release_memory(device):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


# In the order in which "auto" looks for one. torch.cuda's functions are looked
# up when they are called, because a test replaces them.
KINDS = {
    "cuda": Kind(
        title="CUDA device",
        is_available=lambda: torch.cuda.is_available(),
        count=lambda: torch.cuda.device_count(), backend="nccl",
        worthwhile_flops=0,
        name=lambda device: torch.cuda.get_device_name(device),
        multiplies_bfloat16=lambda device: (
            torch.cuda.get_device_capability(device) >= (8, 0)
        ),
        # Estimated, for an H100: it takes 60 to 90 s, and then saves 0.5 to
        # 0.7 s of each step of 4.5e14 operations.
        compile_flops=6e16,
        pins_memory=True,
        synchronize=lambda device: torch.cuda.synchronize(device),
        get_rng_state=lambda device: torch.cuda.get_rng_state(device),
        set_rng_state=lambda *state: torch.cuda.set_rng_state(*state),
        release_memory=_cuda_release_memory,
        peak_memory=lambda device: torch.cuda.max_memory_allocated(device),
        # What torch keeps in reserve is freed before a run starts.
        free_memory=lambda device: (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
        ),
        # 65,536 tokens give NaN in compiled attention with some versions of
        # torch (pytorch/pytorch#171389): stay well below.
        micro_batch_tokens=32768,
        evaluation_tokens=32768,
        # Each chunk reads and writes the weight's gradient, 154 MB for GPT-2,
        # and is compiled anew, hence few and large ones: 0.8 GB in float32.
        chunk_rows=4096,
        # Unaligned rows of bfloat16 keep cuBLAS from its fast kernels.
        evaluation_columns=64,
    ),
    "mps": Kind(
        title="Apple GPU",
        is_available=lambda: torch.backends.mps.is_available(),
        count=lambda: 1, backend=None,
        # A processor computes 1e11 in about 0.1 s; starting the kernels of a
        # step takes about a tenth of that (an estimate).
        worthwhile_flops=1e11,
        name=lambda device: "Apple GPU (mps)",
        # Autocast is there, and untried: float32 unless asked for.
        multiplies_bfloat16=lambda device: False,
        compile_flops=math.inf,
        # Memory is shared with the processor.
        pins_memory=False,
        synchronize=lambda device: torch.mps.synchronize(),
        get_rng_state=lambda device: torch.mps.get_rng_state(),
        set_rng_state=lambda state, device: torch.mps.set_rng_state(state),
        # Metal has no peak. What the driver has allocated only grows until
        # the cache is emptied, which happens before each run.
        release_memory=lambda device: torch.mps.empty_cache(),
        peak_memory=lambda device: torch.mps.driver_allocated_memory(),
        free_memory=lambda device: (
            torch.mps.recommended_max_memory()
            - torch.mps.current_allocated_memory()
        ),
        micro_batch_tokens=4096,
        evaluation_tokens=4096,
        chunk_rows=1024,
        evaluation_columns=64,
    ),
    "cpu": Kind(
        title="CPU",
        is_available=lambda: True,
        count=None, backend="gloo",
        worthwhile_flops=0,
        name=lambda device: "cpu",
        multiplies_bfloat16=_cpu_multiplies_bfloat16,
        # It takes 50 s on two cores, then saves up to 10 % at full size.
        compile_flops=5e14,
        pins_memory=False,
        synchronize=lambda device: None,  # Nothing is ever queued.
        get_rng_state=None,
        set_rng_state=None,
        release_memory=None,
        peak_memory=None,
        free_memory=None,
        # More tokens gain nothing and cost memory; without gradients, more of
        # them share the cost of preparing the weights.
        micro_batch_tokens=4096,
        evaluation_tokens=16384,
        # Matrix products of this size are at full speed. More columns gain
        # nothing, and the weight would be copied.
        chunk_rows=1024,
        evaluation_columns=1,
    ),
}


def multiplies_bfloat16(device):
    """Whether the device has instructions for it, or would emulate it."""
    return KINDS[device.type].multiplies_bfloat16(device)


def dtype_name(dtype):
    """A dtype as parameters and results name it: "float32"."""
    return str(dtype).removeprefix("torch.")


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


def synchronize(device):
    """Wait for the work queued on the device, so that a clock can be read."""
    KINDS[device.type].synchronize(device)


def device_name(device):
    """The device as results name it: "cpu", or the model of the GPU."""
    return KINDS[device.type].name(device)
