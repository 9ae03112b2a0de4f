"""Selection of a run's device and precision, with the reasons."""
import math
from typing import NamedTuple

import torch

from benchmark_utils.hardware.device import (
    KINDS,
    dtype_name,
    multiplies_bfloat16,
)


class Machine(NamedTuple):
    """Where and in which precision (of matrix products) a run computes."""

    device: torch.device
    dtype: torch.dtype
    device_reason: str
    dtype_reason: str

    @classmethod
    def choose(cls, device="auto", dtype="auto", step_flops=math.inf):
        """See ``choose_device`` and ``choose_dtype``."""
        device, device_reason = choose_device(device, step_flops)
        dtype, dtype_reason = choose_dtype(dtype, device)
        return cls(device, dtype, device_reason, dtype_reason)

    def describe(self):
        """Device and precision with their reasons, for the user."""
        return (
            f"Training on {self.device} ({self.device_reason}) in "
            f"{dtype_name(self.dtype)} ({self.dtype_reason})"
        )


def choose_device(device="auto", step_flops=math.inf):
    """Decide on which device to compute.

    Parameters
    ----------
    device : str
        "auto", or what torch understands: "cpu", "cuda", "cuda:1", "mps".
    step_flops : float
        Floating-point operations of a training step.

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
        reasons = []
        for type_, kind in KINDS.items():
            if not kind.is_available():
                reasons.append(f"there is no {kind.title}")
            elif step_flops < kind.worthwhile_flops:
                reasons.append(f"the problem is small for the {kind.title}")
            else:
                # The CPU is last, and is taken for want of the others.
                if type_ != "cpu":
                    reasons = [f"{kind.title} found"]
                return torch.device(type_), " and ".join(reasons)
    try:
        chosen = torch.device(device)
        if chosen.type not in KINDS:
            raise RuntimeError("The benchmark does not know this kind.")
        if not KINDS[chosen.type].is_available():
            raise RuntimeError(f"torch {torch.__version__} finds none.")
        torch.empty(1, device=chosen)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={device!r} can't be used: {str(error).splitlines()[0]} "
            "Use 'auto', 'cpu', 'cuda' or 'mps'."
        ) from error
    return chosen, "as asked for"


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
    return torch.float32, "the device is not known to multiply bfloat16"
