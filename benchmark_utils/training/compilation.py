"""Whether a model is compiled, and how."""
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

from benchmark_utils.device import KINDS


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
    if flops < KINDS[device.type].compile_flops:
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


def compile_model(model):
    """Compile a model in place, so that evaluation runs the same code as
    training.

    Without ``isolate_recompiles``, torch counts recompilations over all
    models and silently goes back to eager. On a CPU, GELU's tanh is computed
    from an exponential, which takes less than half the time.
    """
    model.compile(
        dynamic=False, isolate_recompiles=True,
        options={"cpp.use_decompose_tanh": True},
    )
