"""Process-wide settings of torch: every run starts with the same ones."""
import functools

import torch

# How each setting is read, and how it is set.
SETTINGS = [
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, torch.set_default_device),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    (torch.are_deterministic_algorithms_enabled,
     torch.use_deterministic_algorithms),
]
# Settings that are attributes of an object.
FLAGS = [
    (torch.backends, "fp32_precision"),
    (torch.backends.cuda.matmul, "fp32_precision"),
    (torch.backends.mkldnn.matmul, "fp32_precision"),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
]


def read_settings():
    return [read() for read, _ in SETTINGS] + [
        getattr(owner, name) for owner, name in FLAGS
    ]


# Read when the objective is loaded, before any solver file is imported.
INITIAL = read_settings()
INITIAL_PRECISION = torch.get_float32_matmul_precision()


def restore_settings():
    """Undo what solver files and earlier runs of this process have set.

    A solver that needs a setting sets it in ``get_optimizer``, for its own
    runs alone.
    """
    # torch has two interfaces to the precision of products, and refuses to
    # answer through the first while the second was used: both are set.
    torch.set_float32_matmul_precision(INITIAL_PRECISION)
    now = read_settings()
    writers = [write for _, write in SETTINGS] + [
        functools.partial(setattr, owner, name) for owner, name in FLAGS
    ]
    for write, value, initial in zip(writers, now, INITIAL, strict=True):
        if value != initial:
            write(initial)
