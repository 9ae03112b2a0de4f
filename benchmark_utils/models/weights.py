"""Saving and loading a model's weights as a safetensors file."""
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file


def save_weights(model, path):
    """Write a model's weights, complete or not at all.

    Parameters
    ----------
    model : nn.Module
    path : Path

    Raises
    ------
    OSError
        If it can't be written.
    """
    path = Path(path)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    handle, unfinished = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    try:
        save_file(tensors, unfinished)
        os.replace(unfinished, path)
    except BaseException as error:
        os.unlink(unfinished)
        if isinstance(error, SafetensorError):
            # That is how it reports a full disk.
            raise OSError(str(error)) from error
        raise


@torch.no_grad()
def load_weights(model, path):
    """Put the weights of a file into a model.

    Parameters
    ----------
    model : nn.Module
    path : Path or str

    Raises
    ------
    ValueError
        If the file can't be read, or has other names or shapes than the
        model; then the model is as it was.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise ValueError(f"There is no file {path}.") from error
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    own = model.state_dict()
    wrong = sorted(
        f"{name}: {_shape(tensors, name)} instead of {_shape(own, name)}"
        for name in own.keys() | tensors.keys()
        if _shape(own, name) != _shape(tensors, name)
    )
    if wrong:
        raise ValueError(
            f"{path} holds the weights of another model: {len(wrong)} "
            "tensors have other names or shapes than this model's. "
            f"{'; '.join(wrong[:3])}{'; ...' if len(wrong) > 3 else ''}"
        )
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def _shape(tensors, name):
    """The shape in words, "nothing" where there is no such tensor."""
    return list(tensors[name].shape) if name in tensors else "nothing"
