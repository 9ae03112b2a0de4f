"""The two halves of what the objective hands to a solver."""
import dataclasses
from collections.abc import Callable
from pathlib import Path

from benchmark_utils.data.loader import BatchLoader
from benchmark_utils.distributed.world import ALONE, World
from benchmark_utils.hardware.selection import Machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """What a solver trains, and on what: the same for all solvers.

    Attributes
    ----------
    model : str
        The name of the model: a key of ``models.named.MODELS``.
    make_model : function without arguments
        It returns a fresh model on the device.
    train_loader : BatchLoader
        The training batches of this rank.
    val_tokens : int
        Tokens of an evaluation.
    machine : Machine
        Device and precision.
    world : World
        The ranks that share the training: not connected yet.
    description : str
        A sentence to print: what computes, and why.
    """

    model: str
    make_model: Callable
    train_loader: BatchLoader
    val_tokens: int
    machine: Machine
    world: World = ALONE
    description: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out; its losses don't depend on it, but for
    rounding.

    Attributes
    ----------
    eval_every : int or "auto"
        Steps between evaluations: see
        ``training.schedules.choose_eval_every``.
    micro_batch_size : int or "auto"
        Rows of one forward-backward pass.
    compile : bool or "auto"
    checkpoint_every : int, "auto" or str
    resume : bool
        See ``resume.Resumable``.
    log_path : Path or None
        See ``progress.Progress``.
    """

    eval_every: int | str = "auto"
    micro_batch_size: int | str = "auto"
    compile: bool | str = "auto"
    checkpoint_every: int | str = 0
    resume: bool = False
    log_path: Path | None = None
