"""Arguments of ``TrainingSolver.set_objective``, from the objective."""
import dataclasses
from collections.abc import Callable
from pathlib import Path

from benchmark_utils.data.loader import BatchLoader
from benchmark_utils.distributed.world import ALONE, World
from benchmark_utils.hardware.selection import Machine
from benchmark_utils.models.transformer import Transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """The problem that every solver receives.

    Attributes
    ----------
    model : str
        A key of ``models.named.MODELS``.
    make_model : function without arguments
        Returns a fresh model on the device.
    train_loader : BatchLoader
        The training batches of this rank.
    val_tokens : int
        Tokens of an evaluation.
    machine : Machine
        Device and precision.
    world : World
        The ranks that share the training, not yet connected.
    description : str
        Hardware, ranks and threads, with the reasons, to print.
    """

    model: str
    make_model: Callable[[], Transformer]
    train_loader: BatchLoader
    val_tokens: int
    machine: Machine
    world: World = ALONE
    description: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that change how a run is computed, but its losses only by
    rounding.

    Attributes
    ----------
    eval_every : int or "auto"
        Steps between evaluations: see
        ``training.schedules.choose_eval_every``.
    micro_batch_size : int or "auto"
        Sequences per forward-backward pass.
    compile : bool or "auto"
    checkpoint_every : int, "auto" or str
    resume : bool
        See ``harness.resume.Resumable``.
    log_path : Path or None
        See ``console.progress.Progress``.
    """

    eval_every: int | str = "auto"
    micro_batch_size: int | str = "auto"
    compile: bool | str = "auto"
    checkpoint_every: int | str = 0
    resume: bool = False
    log_path: Path | None = None
