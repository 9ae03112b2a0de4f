"""Compilation of models: the decision, and torch.compile itself."""
import contextlib
import functools
import math
import os
import shlex
import shutil
import struct
import sys
from pathlib import Path

import filelock
import torch

from benchmark_utils.hardware.device import KINDS


def choose_compile(compile, device, flops):
    """Decide whether to compile the model.

    Parameters
    ----------
    compile : bool or "auto"
        "auto" is yes if the run is long enough to make up for it, and a small
        function compiles.
    device : torch.device
    flops : float
        Floating-point operations of the whole run.

    Returns
    -------
    compile : bool
    reason : str

    Raises
    ------
    ValueError
        If compilation is asked for and fails, with the compiler's message.
    """
    if compile not in (True, False, "auto"):
        raise ValueError(
            f"compile={compile!r} is not one of auto, True, False."
        )
    kind = KINDS[device.type]
    if compile is False:
        return False, "as asked for"
    if compile == "auto":
        if math.isinf(kind.compile_flops) or sys.platform == "win32":
            where = "on Windows" if sys.platform == "win32" else (
                f"for the {kind.title}"
            )
            return False, f"compilation has never been tried {where}"
        if flops < kind.compile_flops:
            return False, "the run is too short to make up for compilation"
    error = compiler_error(device)
    if error and compile is True:
        raise ValueError(
            f"compile=True, but compilation fails (its cache is "
            f"{cache_folder()}): {error}"
        )
    if error:
        return False, f"compilation fails: {error.splitlines()[0]}"
    if compile is True:
        return True, "as asked for"
    return True, "the run is long enough to make up for compilation"


def compile_model(model, by_block=False):
    """Compile a model in place, so that evaluation runs the same code as
    training.

    A model compiled as a whole gives all its gradients at the very end of the
    backward pass. ``by_block`` compiles its blocks and its head each on its
    own: gradients come as the backward pass goes, and can be sent to other
    ranks meanwhile.

    Without ``isolate_recompiles``, torch counts recompilations over all
    models and silently goes back to eager. On a CPU, GELU's tanh is computed
    from an exponential, which takes less than half the time.
    """
    options = dict(
        dynamic=False, isolate_recompiles=True,
        options={"cpp.use_decompose_tanh": True} | compiler_options(),
    )
    for module in [*model.blocks, model.loss] if by_block else [model]:
        module.compile(**options)


@functools.cache
def compiler_error(device):
    """Compile a small function for the device, once per process.

    A compiler that is missing or broken, a cache folder that can't be written
    to or executed from, missing headers: only trying tells.

    Returns
    -------
    message : str
        The kind of the compiler's error and its message; empty if all went
        well.
    """
    try:
        drop_broken_entries(cache_folder())
        torch.compile(
            lambda x: x.sin() + 1, dynamic=False, options=compiler_options()
        )(torch.ones(1024, device=device))
    # torch wraps whatever a compiler does in errors of many kinds.
    except Exception as error:
        # Their messages can begin with a line that gives no reason.
        while hasattr(error, "inner_exception"):
            error = error.inner_exception
        return f"{type(error).__name__}: {error}".strip(": \n")
    return ""


def compiler_options():
    """Have torch and Triton find the compilers that ``CXX`` and ``CC`` name,
    also where it takes several words, as in "ccache g++".

    Both take a variable's value for the name of one program. Instead of
    several words, it is given a script that runs them.

    Returns
    -------
    options : dict
        Options for ``torch.compile``, because torch has read ``CXX`` before.
    """
    for variable in ("CXX", "CC"):
        value = os.environ.get(variable, "")
        if " " in value.strip() and not shutil.which(value):
            script = cache_folder() / f"{variable}.sh"
            script.parent.mkdir(parents=True, exist_ok=True)
            unfinished = script.with_suffix(f".{os.getpid()}")
            unfinished.write_text(
                f'#!/bin/sh\nexec {shlex.join(shlex.split(value))} "$@"\n'
            )
            unfinished.chmod(0o755)
            unfinished.replace(script)
            os.environ[variable] = str(script)
    cxx = os.environ.get("CXX")
    return {"cpp.cxx": (None, cxx)} if cxx else {}


def cache_folder():
    """Where torch keeps what it has compiled: ``TORCHINDUCTOR_CACHE_DIR``, or
    a folder of the user's among the temporary files."""
    if folder := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return Path(folder)
    # Not at the top: the import fails where there can be no such folder.
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir
    return Path(default_cache_dir())


def drop_broken_entries(folder):
    """Delete libraries that a killed compiler left unfinished in a cache.

    torch takes each file that is there for finished, and every later run would
    fail to load it. One that another process is writing is locked, by torch.
    """
    for path in [*folder.glob("*/*.so"), *folder.glob("*/*.o")]:
        key = path.name.partition(".")[0]
        if not is_whole(path):
            with contextlib.suppress(filelock.Timeout), filelock.FileLock(
                folder / "locks" / f"{key}.lock", timeout=0
            ):
                if not is_whole(path):
                    path.unlink(missing_ok=True)


def is_whole(path):
    """Whether a compiled file is as long as its header says: where it is an
    ELF file, which ends with the table of its sections."""
    try:
        with path.open("rb") as file:
            header = file.read(64)
    except FileNotFoundError:
        return True
    if header[:5] != b"\x7fELF\x02":
        # Of another system, or empty, or zeros after a loss of power.
        return any(header)
    if len(header) < 64:
        return False
    table, = struct.unpack_from("<Q", header, 0x28)
    entry_size, num_entries = struct.unpack_from("<HH", header, 0x3A)
    return path.stat().st_size >= table + entry_size * num_entries
