"""Atomic checkpoints of nested state.

A checkpoint is a folder of three files: ``tensors.safetensors``,
``state.json`` (the nesting and all other values) and ``SHA256SUMS`` of both,
for ``sha256sum -c``. It is written under a temporary name, synced to disk and
renamed. Reading a checkpoint runs no code.
"""
import collections
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

KEPT = 2
PREFIX = "step_"
UNFINISHED = "unfinished-"
# Age after which an unfinished checkpoint is left over from a killed process.
UNFINISHED_SECONDS = 3600
DTYPES = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values() if isinstance(value, torch.dtype)
}
SEQUENCES = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}


def save(folder: str | Path, step: int, state: Any) -> Path:
    """Write a checkpoint, and remove all but the last two of its folder.

    Parameters
    ----------
    folder : str or Path
        Created if it does not exist.
    step : int
        Number in the checkpoint's name.
    state : nested dict, list, tuple, set and deque
        Nesting of tensors (on any device), NumPy arrays, dtypes of torch,
        numbers, strings, booleans and None.

    Raises
    ------
    OSError
        If writing fails; no partial checkpoint is left.
    TypeError
        If the state holds a value of another type.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
    try:
        tensors: dict[str, torch.Tensor] = {}
        packed = _pack(state, tensors)
        try:
            save_file(tensors, unfinished / "tensors.safetensors")
        except SafetensorError as error:
            # safetensors reports a full disk like this.
            raise OSError(str(error)) from error
        (unfinished / "state.json").write_text(json.dumps(packed, indent=1))
        (unfinished / "SHA256SUMS").write_text(_sums(unfinished))
        for path in [*unfinished.iterdir(), unfinished]:
            _force_to_disk(path)
        path = folder / f"{PREFIX}{step:09d}"
        # An existing checkpoint of this step is damaged, or of a run with
        # resume=False, or was written by another process of the same run.
        with contextlib.suppress(FileNotFoundError):
            path.rename(unfinished / "replaced")
        unfinished.rename(path)
        shutil.rmtree(path / "replaced", ignore_errors=True)
        _force_to_disk(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _prune(folder)
    return path


def load(path: str | Path) -> Any:
    """Read a checkpoint's state, with all tensors on the CPU.

    Raises
    ------
    ValueError
        If the checkpoint is damaged or unreadable.
    """
    path = Path(path)
    try:
        written = (path / "SHA256SUMS").read_text()
        if written != _sums(path):
            raise ValueError(f"{path} is damaged.")
        mapped = load_file(path / "tensors.safetensors")
        # Copies, because a mapped file can't be removed on Windows, and leaves
        # a remnant on a network file system.
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
        packed = json.loads((path / "state.json").read_text())
        return _unpack(packed, tensors)
    except (
        OSError, SafetensorError, UnicodeDecodeError, KeyError, TypeError
    ) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def newest_first(folder: str | Path) -> list[Path]:
    """List the checkpoints in a folder, which may be missing.

    The order is by time of writing, because a damaged or unused checkpoint can
    be of a later step than a newer one.
    """
    def written(path):
        try:
            return path.stat().st_mtime_ns, path.name
        except OSError:
            # Removed by another process of the same run.
            return 0, path.name

    return sorted(Path(folder).glob(f"{PREFIX}*"), key=written, reverse=True)


def size(state: Any) -> int:
    """Count the bytes of the tensors in a state."""
    tensors: dict[str, torch.Tensor] = {}
    _pack(state, tensors, copy=False)
    return sum(tensor.nbytes for tensor in tensors.values())


def _prune(folder):
    # Best effort: another process of the same run does the same.
    for path in newest_first(folder)[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f"{UNFINISHED}*"):
        try:
            age = time.time() - path.stat().st_mtime
        except OSError:
            continue
        if age > UNFINISHED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _pack(value, tensors, copy=True, where="state"):
    """Convert a state to JSON values, and collect its tensors in a dict.

    Dicts and tuples become JSON objects with their kind as the only key: JSON
    has only string keys and no tuples.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        # A product's rounding depends on the order of its operands in memory.
        strides = value.stride()
        order = sorted(range(value.ndim), key=lambda axis: -strides[axis])
        value = value.detach().permute(order)
        if copy:
            # safetensors refuses tensors that share memory.
            value = value.cpu().clone(memory_format=torch.contiguous_format)
        tensors[name] = value
        if order == sorted(order):
            return {"tensor": name}
        return {"permuted": [name, order]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"array": [value.dtype.str, value.tolist()]}
    if isinstance(value, dict):
        return {"dict": [
            [
                _pack(k, tensors, copy, where),
                _pack(v, tensors, copy, f"{where}[{k!r}]"),
            ] for k, v in value.items()
        ]}
    if isinstance(value, collections.deque):
        return {"deque": [
            value.maxlen, _pack(list(value), tensors, copy, where)
        ]}
    for kind, sequence in SEQUENCES.items():
        if isinstance(value, sequence):
            return {kind: [
                _pack(v, tensors, copy, f"{where}[{i}]")
                for i, v in enumerate(value)
            ]}
    raise TypeError(f"{where} is a {type(value).__name__}: it can't be saved.")


def _unpack(value, tensors):
    if not isinstance(value, dict):
        return value
    (kind, content), = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "permuted":
        name, order = content
        return tensors[name].permute(
            [order.index(axis) for axis in range(len(order))]
        )
    if kind == "dtype":
        return DTYPES[content]
    if kind == "array":
        dtype, values = content
        return np.array(values, dtype)
    if kind == "dict":
        return {
            _unpack(k, tensors): _unpack(v, tensors) for k, v in content
        }
    if kind == "deque":
        maxlen, values = content
        return collections.deque(_unpack(values, tensors), maxlen)
    return SEQUENCES[kind](_unpack(v, tensors) for v in content)


def _sums(folder):
    """Compute the content of SHA256SUMS."""
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
    # Windows can't open a folder, and renames without a sync.
    if is_folder and sys.platform == "win32":
        return
    # Windows syncs only files opened for writing; a folder can't be.
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
