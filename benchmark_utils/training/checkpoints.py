"""Checkpoints: nested states on disk, complete or not there at all.

A checkpoint is a folder of three files: ``tensors.safetensors``,
``state.json`` (the nesting, and whatever is no tensor) and ``SHA256SUMS`` of
both, as ``sha256sum -c`` reads it. It is written under another name, forced
to the disk, and renamed. Reading one runs no code that is in it.

Here are files only: what a state means is its owner's business.
"""
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

KEPT = 2
PREFIX = "step_"
UNFINISHED = "unfinished-"
# What a killed process left unfinished is nobody's after this many seconds.
UNFINISHED_SECONDS = 3600
DTYPES = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values() if isinstance(value, torch.dtype)
}


def save(folder, step, state):
    """Write a checkpoint, and remove all but the last two of its folder.

    Parameters
    ----------
    folder : Path
        Made if it isn't there.
    step : int
        Number of the step, which names the checkpoint.
    state : nested dict, list and tuple
        Nesting of tensors (on any device), NumPy arrays, dtypes of torch,
        numbers, strings, booleans and None.

    Returns
    -------
    path : Path

    Raises
    ------
    OSError
        If it can't be written; then nothing is left of it.
    TypeError
        If the state holds anything else.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
    try:
        tensors = {}
        packed = _pack(state, tensors)
        try:
            save_file(tensors, unfinished / "tensors.safetensors")
        except SafetensorError as error:
            # That is how it reports a full disk.
            raise OSError(str(error)) from error
        (unfinished / "state.json").write_text(json.dumps(packed, indent=1))
        (unfinished / "SHA256SUMS").write_text(_sums(unfinished))
        for path in [*unfinished.iterdir(), unfinished]:
            _force_to_disk(path)
        path = folder / f"{PREFIX}{step:09d}"
        # One that is there already is damaged, or of a run that was not to be
        # resumed, or another process of the same run has written it.
        with contextlib.suppress(FileNotFoundError):
            path.rename(unfinished / "replaced")
        unfinished.rename(path)
        shutil.rmtree(path / "replaced", ignore_errors=True)
        _force_to_disk(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _prune(folder)
    return path


def load(path):
    """Read a checkpoint; its tensors are on the CPU.

    Raises
    ------
    ValueError
        If it is not what was written.
    """
    path = Path(path)
    try:
        written = (path / "SHA256SUMS").read_text()
        if written != _sums(path):
            raise ValueError(f"{path} is damaged.")
        mapped = load_file(path / "tensors.safetensors")
        # Copies, because a file in use can't be removed on Windows, and
        # leaves a remnant on a network file system.
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
        packed = json.loads((path / "state.json").read_text())
        return _unpack(packed, tensors)
    except (
        OSError, SafetensorError, UnicodeDecodeError, KeyError, TypeError
    ) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def newest_first(folder):
    """Paths of the checkpoints in a folder; none if there is no folder.

    By the time when they were written: one that is not to be used, or is
    damaged, can be of a later step than those written after it.
    """
    def written(path):
        try:
            return path.stat().st_mtime_ns, path.name
        except OSError:
            # Another process of the same run has removed it.
            return 0, path.name

    return sorted(Path(folder).glob(f"{PREFIX}*"), key=written, reverse=True)


def size(state):
    """Bytes of the tensors in a state."""
    tensors = {}
    _pack(state, tensors, copy=False)
    return sum(tensor.nbytes for tensor in tensors.values())


def _prune(folder):
    """Best effort: another process of the same run does the same."""
    for path in newest_first(folder)[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f"{UNFINISHED}*"):
        try:
            age = time.time() - path.stat().st_mtime
        except OSError:
            continue
        if age > UNFINISHED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _pack(value, tensors, copy=True):
    """Return what JSON can hold of a state, and put its tensors into a dict.

    A dict can have other keys than strings, and a tuple is no list: each
    becomes a JSON object with one key, its kind.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        value = value.detach()
        if copy:
            # The file has no two tensors that share memory.
            value = value.cpu().clone(memory_format=torch.contiguous_format)
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"array": [value.dtype.str, value.tolist()]}
    if isinstance(value, dict):
        return {"dict": [
            [_pack(k, tensors, copy), _pack(v, tensors, copy)]
            for k, v in value.items()
        ]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(v, tensors, copy) for v in value]}
    raise TypeError(f"A {type(value).__name__} can't be saved.")


def _unpack(value, tensors):
    if not isinstance(value, dict):
        return value
    (kind, content), = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dtype":
        return DTYPES[content]
    if kind == "array":
        dtype, values = content
        return np.array(values, dtype)
    if kind == "dict":
        return {
            _unpack(k, tensors): _unpack(v, tensors) for k, v in content
        }
    return {"list": list, "tuple": tuple}[kind](
        _unpack(v, tensors) for v in content
    )


def _sums(folder):
    """The lines of SHA256SUMS."""
    return "".join(
        f"{_sha256(folder / name)}  {name}\n"
        for name in ("tensors.safetensors", "state.json")
    )


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _force_to_disk(path):
    is_folder = path.is_dir()
    # Windows can't open a folder, and needs no such thing for a name.
    if is_folder and sys.platform == "win32":
        return
    # Windows forces only what can be written; folders are never opened so.
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
