"""The training of one model by one optimizer.

    trainer = Trainer(model, optimizer, loader, schedule)
    trainer.train(100)

One step is a forward and a backward pass per micro-batch, gradient clipping,
and one update. The Trainer uses neither benchopt nor clocks nor files:
docs/trainer.rst has a training run in a notebook.
"""
import contextlib
import random
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from benchmark_utils.distributed.data_parallel import (
    GradientAllReduce,
    ShardedUpdates,
)
from benchmark_utils.distributed.world import ALONE, World
from benchmark_utils.hardware.device import KINDS, autocast
from benchmark_utils.optimizers.groups import check_coverage
from benchmark_utils.optimizers.interface import (
    check_optimizer,
    copy_rate,
    get_counters,
    load_state,
    parts_of,
    set_counters,
    set_rate,
)
from benchmark_utils.training.objects import (
    fingerprints,
    pack_objects,
    unpack_objects,
)


class Trainer:
    """A model, its optimizer, and the steps that train it.

    Parameters
    ----------
    model : nn.Module
        ``model(inputs, targets)`` is the mean loss, a float32 scalar tensor.
    optimizer : torch.optim.Optimizer
        At peak learning rate, with every parameter of the model in exactly
        one group. ``eval`` and ``train``, if it has them (as Schedule-free
        does), write the weights for evaluation and training into the model.
    loader : BatchLoader or None
        Source of ``batches``; None if only ``train_step`` is called.
    schedule : function of int, returns float
        Factor of the peak learning rate, by the number of steps done.
    max_grad_norm : float
        Global norm to clip gradients to; 0 for no clipping.
    micro_batch_size : int or None
        Rows per forward pass; None for the whole batch.
    dtype : torch.dtype
        Precision of matrix products: float32, or bfloat16 by autocast.
    world : World
        The connected ranks that train this model, each with its own Trainer
        and its rows of every batch.
    sharded_updates : ShardedUpdates or None
        Division of the updates among the ranks; None if each does all.

    Raises
    ------
    ValueError
        If the optimizer can't be used, or does not hold every parameter once.
    """

    def __init__(self, model: torch.nn.Module,
                 optimizer: torch.optim.Optimizer, loader,
                 schedule: Callable[[int], float], *,
                 max_grad_norm: float = 0.0,
                 micro_batch_size: int | None = None,
                 dtype: torch.dtype = torch.float32, world: World = ALONE,
                 sharded_updates: ShardedUpdates | None = None):
        check_optimizer(optimizer)
        check_coverage(optimizer, model)
        # Without types because ``close`` sets both to None.
        self.model: Any = model
        self.optimizer: Any = optimizer
        self.loader, self.schedule = loader, schedule
        self.max_grad_norm = max_grad_norm
        self.micro_batch_size = micro_batch_size
        self.dtype = dtype
        self.device = next(model.parameters()).device
        for group in optimizer.param_groups:
            group["peak_lr"] = copy_rate(group["lr"])
        self._initial = fingerprints(optimizer.state_dict())
        self._averaging = [
            part for part in parts_of(optimizer) if hasattr(part, "eval")
        ]
        for part in self._averaging:
            part.train()
        self.world = world
        self._all_reduce = GradientAllReduce(world, model.parameters())
        self._sharded = sharded_updates or ShardedUpdates(world)
        # Updates done.
        self.step = 0
        self._loss_sum = torch.zeros((), device=self.device)
        self._loss_count = 0

    @property
    def learning_rate(self) -> float:
        """The first group's learning rate in the last step; 0 before any."""
        return float(self.optimizer.param_groups[0]["lr"] if self.step else 0)

    def train(self, stop_step: int):
        """Train until ``stop_step`` steps are done."""
        with contextlib.closing(self.batches(stop_step)) as batches:
            for inputs, targets in batches:
                self.train_step(inputs, targets)

    def batches(self, stop_step: int) -> Generator:
        """Return the batches of the remaining steps until ``stop_step``."""
        return self.loader.batches(self.device, self.step, stop_step)

    def train_step(self, inputs: torch.Tensor, targets: torch.Tensor):
        """Do one update without waiting for the device.

        ``inputs`` and ``targets`` are int64 [rows, sequence_length].
        """
        factor = self.schedule(self.step)
        for group in self.optimizer.param_groups:
            set_rate(group, factor * group["peak_lr"])
        self._loss_sum += self.accumulate_gradients(inputs, targets)
        self._loss_count += 1
        if self.max_grad_norm:
            clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self._sharded.drop_foreign_gradients()
        self.optimizer.step()
        self._check_rates(factor)
        self._sharded.broadcast_updates()
        self.optimizer.zero_grad()
        self.step += 1

    def _check_rates(self, factor):
        """Raise ``ValueError`` if the optimizer has set its own rate."""
        for group in self.optimizer.param_groups:
            rate = group["lr"]
            # Reading a tensor would wait for the device.
            if not isinstance(rate, torch.Tensor) and (
                rate != factor * group["peak_lr"]
            ):
                raise ValueError(
                    f"{type(self.optimizer).__name__}.step changed the "
                    f"learning rate from {factor * group['peak_lr']:g} to "
                    f"{rate:g}: the schedule has no effect on it."
                )

    def accumulate_gradients(
        self, inputs: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Add the gradients of a batch's mean loss to the parameters'
        gradients, and average them over the ranks.

        Returns the mean loss of this rank's rows, a float32 scalar tensor on
        the device.
        """
        batch_loss = torch.zeros((), device=self.device)
        size = self.micro_batch_size or len(inputs)
        micro_batches = list(zip(
            inputs.split(size), targets.split(size), strict=True
        ))
        for index, (micro_inputs, micro_targets) in enumerate(micro_batches):
            with autocast(self.device, self.dtype):
                loss = self.model(micro_inputs, micro_targets)
            # The micro-batch's share of the mean over the batch.
            loss = loss * (len(micro_inputs) / len(inputs))
            if index == len(micro_batches) - 1:
                self._all_reduce.begin_last_backward()
            loss.backward()
            batch_loss += loss.detach()
        self._all_reduce.wait_for_gradients()
        return batch_loss

    def pop_train_loss(self) -> float | None:
        """Return the mean training loss since the last call, over all ranks;
        None if there was no step. This waits for the device."""
        if not self._loss_count:
            return None
        mean = self.world.mean(self._loss_sum.item()) / self._loss_count
        self._loss_sum.zero_()
        self._loss_count = 0
        return mean

    @contextlib.contextmanager
    def eval_weights(self) -> Iterator[torch.nn.Module]:
        """Yield the model with the weights to evaluate, as a context.

        These are the training weights, unless the optimizer has others.
        Training continues afterwards from its own weights, to the bit.
        """
        if not self._averaging:
            yield self.model
            return
        parameters = list(self.model.parameters())
        training_weights = [p.detach().clone() for p in parameters]
        for part in self._averaging:
            part.eval()
        try:
            yield self.model
        finally:
            for part in self._averaging:
                part.train()
            with torch.no_grad():
                torch._foreach_copy_(parameters, training_weights)

    def state_dict(self) -> dict:
        """Return all that a run depends on, as nested dicts and lists.

        All ranks must call this; rank 0's result is complete, and the same
        for any number of ranks. The learning rate and the position in the
        data follow from the step. The random generators are the process's.
        """
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": pack_objects(
                self._sharded.gather(self.optimizer), self._initial
            ),
            "counters": get_counters(self.optimizer),
            "loss_sum": self.world.sum(
                self._loss_sum.clone()
            ) / self.world.size,
            "loss_count": self._loss_count,
            "generators": generator_states(self.device),
        }

    def load_state_dict(self, state: dict):
        """Continue from the ``state_dict`` of a Trainer with the same model
        and optimizer; to the bit on a CPU."""
        self.model.load_state_dict(state["model"])
        load_state(self.optimizer, unpack_objects(
            state["optimizer"], self.optimizer.state_dict()
        ))
        set_counters(self.optimizer, state["counters"])
        self._sharded.drop_foreign_state(self.optimizer)
        self.step = state["step"]
        self._loss_sum.copy_(state["loss_sum"])
        self._loss_count = state["loss_count"]
        set_generator_states(self.device, state["generators"])

    def close(self):
        """Free model and optimizer."""
        self.model = self.optimizer = None
        self._averaging, self._initial = [], {}


def seed_generators(seed: int):
    """Seed the random generators of torch, NumPy and Python: an optimizer may
    draw from any of them."""
    for seed_one in (torch.manual_seed, np.random.seed, random.seed):
        seed_one(seed)


def generator_states(device: torch.device) -> dict:
    """Return the states of the random generators of torch, NumPy, Python and
    the device, for ``set_generator_states``."""
    get_device_state = KINDS[device.type].get_rng_state
    states = {
        "torch": torch.get_rng_state(),
        "numpy": list(np.random.get_state()),
        "python": random.getstate(),
    }
    if get_device_state:
        states["device"] = get_device_state(device)
    return states


def set_generator_states(device: torch.device, states: dict):
    """Restore ``generator_states`` of a device of the same kind."""
    set_device_state = KINDS[device.type].set_rng_state
    torch.set_rng_state(states["torch"])
    np.random.set_state(tuple(states["numpy"]))
    random.setstate(states["python"])
    if set_device_state:
        set_device_state(states["device"], device)


@torch.no_grad()
def parameter_sums(model: torch.nn.Module) -> torch.Tensor:
    """Sum each parameter: a float32 tensor [number of parameters].

    Equal sums mean that no weight has moved. Norms would not do: some methods
    keep them constant.
    """
    return torch.stack([p.float().sum() for p in model.parameters()])
