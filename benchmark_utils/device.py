"""Where a run computes, and in which precision.

A device is data: the same lines train and evaluate on CPU and on CUDA.
"""
import os
from typing import NamedTuple

import torch

DEVICES = ("cpu", "cuda")


class Machine(NamedTuple):
    """Where a run computes, in which precision, and why."""

    device: torch.device
    dtype: torch.dtype
    device_reason: str
    dtype_reason: str

    @classmethod
    def choose(cls, device="auto", dtype="auto"):
        """Decide by ``choose_device`` and ``choose_dtype``."""
        device, device_reason = choose_device(device)
        dtype, dtype_reason = choose_dtype(dtype, device)
        return cls(device, dtype, device_reason, dtype_reason)

    def describe(self):
        return (
            f"Training on {self.device} ({self.device_reason}) in "
            f"{dtype_name(self.dtype)} ({self.dtype_reason})"
        )


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
        if chosen.type not in DEVICES:
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
    """Wait for the work queued on the device, so that a clock can be read.

    Nothing is ever queued on a CPU.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_device(device):
    """The device as results name it: "cpu", or the model of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(device)
