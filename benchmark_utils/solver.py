"""The training loop that every solver shares.

A solver says which optimizer it is (``get_optimizer``); everything that
another solver must not do differently is here.
"""
import functools
import random
import re

import numpy as np
import torch
from benchopt import BaseSolver
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from benchmark_utils.cache_key import code_hash, installed_version
from benchmark_utils.device import autocast, synchronize
from benchmark_utils.optimizers.combined import with_adamw
from benchmark_utils.optimizers.groups import (
    check_coverage, check_optimizer, describe_groups
)
from benchmark_utils.training.compilation import choose_compile
from benchmark_utils.training.memory import (
    choose_micro_batch, peak_memory, release_memory
)
from benchmark_utils.training.schedules import (
    check_schedule, choose_eval_every, evaluation_share, evaluation_steps,
    learning_rate_factor
)


class TrainingSolver(BaseSolver):
    """Base class of the solvers: train a GPT with one optimizer.

    A subclass has a ``name``, ``parameters`` and ``get_optimizer``. Its
    parameters must include those of the horizon and the schedule:

    - ``num_steps``: the horizon, in optimizer steps;
    - ``warmup_steps``, ``schedule``, ``cooldown``: see
      ``benchmark_utils.training.schedules.learning_rate_factor``;
    - ``max_grad_norm``: gradients are clipped to this global norm; 0 is off.
    """

    # The solver whose model, gradients and optimizer state are in memory.
    # benchopt keeps every solver of a run alive, and has no tear-down hook.
    _in_memory = None
    # Packages that the solver imports, beyond torch.
    requirements = []
    # benchopt's own test trains for a few steps.
    test_config = {"num_steps": 4, "warmup_steps": 1}

    # Before ``set_objective`` there is no schedule (benchopt's own tests ask
    # a solver without parameters for its next evaluation).
    _evaluations = ()

    def get_optimizer(self, roles):
        """Build the optimizer.

        Its ``step()`` is called once per training step, after the gradients
        are computed.

        Parameters
        ----------
        roles : dict of str to list of nn.Parameter
            All parameters of the model by role: "hidden_matrices",
            "embeddings", "head" and "gains_and_biases" (see
            ``GPT2.parameter_roles``). A role can be empty.

        Returns
        -------
        optimizer : torch.optim.Optimizer
            With every parameter in exactly one group, at peak learning rate.
        """
        raise TypeError(f"{self.name} must define get_optimizer.")

    def with_adamw(self, optimizer, roles):
        """Add AdamW, with the solver's ``aux_`` parameters, for all that an
        optimizer of the hidden matrices leaves."""
        return with_adamw(
            optimizer, roles, learning_rate=self.aux_learning_rate,
            betas=(self.aux_beta1, self.aux_beta2),
            weight_decay=self.aux_weight_decay,
        )

    def set_objective(self, make_model, train_loader, eval_every, val_tokens,
                      micro_batch_size, max_micro_batch, device, dtype,
                      compile, description):
        """Take the problem, and check everything that can be wrong with it.

        Parameters
        ----------
        make_model : function without arguments, returns a fresh GPT2 on the
            device
        train_loader : BatchLoader
        eval_every : int or "auto", in steps
        val_tokens : int
        micro_batch_size : int or "auto", in rows
        max_micro_batch : int, in rows
        device : torch.device
        dtype : torch.dtype
            Of matrix products: float32 or bfloat16.
        compile : bool or "auto"
        description : str
            Of device and precision, for the user.

        Raises
        ------
        ValueError
            Naming the parameter, before anything is computed.
        """
        check_schedule(
            self.num_steps, self.warmup_steps, self.schedule, self.cooldown
        )
        self._micro_batch_size = choose_micro_batch(
            train_loader.rank_batch_size, max_micro_batch, micro_batch_size
        )
        # A forward pass is a third of a training step's work.
        evaluation_cost = val_tokens / 3 / train_loader.tokens_per_step
        eval_every = choose_eval_every(
            eval_every, self.num_steps, evaluation_cost
        )
        # Reads the shards.
        train_loader.check_horizon(self.num_steps)
        self._make_model = make_model
        self._loader = train_loader
        self._device, self._dtype = device, dtype
        self._compile_option = compile
        self._evaluations = evaluation_steps(self.num_steps, eval_every)
        self._seed = self.get_seed(use_repetition=True)
        say_once(
            f"{description}, {train_loader.tokens_per_step} tokens per step "
            f"in micro-batches of {self._micro_batch_size} x "
            f"{train_loader.sequence_length}"
        )
        share = evaluation_share(self.num_steps, eval_every, evaluation_cost)
        say_once(
            f"{self.num_steps} steps, {len(self._evaluations)} evaluations of "
            f"{val_tokens} tokens, every {eval_every} steps and finer at the "
            f"end: about {share:.0%} of the time is evaluation (val_tokens "
            "and eval_every decide)"
        )

    def describe_limits(self, max_runs, timeout):
        """Warnings about limits of benchopt that can end a run early."""
        if timeout is not None:
            yield (
                f"{self.name} stops at the first evaluation after {timeout:g}"
                " s, evaluations included (benchopt's --timeout, 100 s "
                "unless given). Pass --no-timeout to train to the end."
            )
        if max_runs < len(self._evaluations) - 1:
            yield (
                f"{self.name} stops after {max_runs + 1} of its "
                f"{len(self._evaluations)} evaluations (benchopt's "
                "--max-runs). Pass --max-runs 100000 to train to the end."
            )

    def get_next(self, stop_val):
        """The next step after which the run is evaluated."""
        later = (step for step in self._evaluations if step > stop_val)
        return next(later, stop_val + 1)

    def warm_up(self):
        """Train throw-away weights on one micro-batch, so that whatever the
        first steps of a process pay for is not timed."""
        self._start()
        micro_batch = self._first_micro_batch()
        for _ in range(2):
            self._train_step(*micro_batch)

    def pre_run_hook(self, callback):
        self._start()
        if self._compiled:
            # The fresh model must not be compiled on the clock.
            for loss in self._micro_losses(*self._first_micro_batch()):
                loss.backward()
            self._optimizer.zero_grad(set_to_none=True)
        # Nor what the preparation has queued on the device.
        synchronize(self._device)

    def run(self, callback):
        batches = self._loader.batches(self._device, stop_step=self.num_steps)
        with tqdm(
            total=self.num_steps, desc=self.name, unit="step", leave=False,
            disable=None, mininterval=1.0,
        ) as progress:
            while True:
                # benchopt reads its clock first thing in the callback, and
                # evaluates at the steps that get_next gave: the work queued
                # until then must be done.
                if self._step in self._evaluations:
                    synchronize(self._device)
                if not callback() or self._step == self.num_steps:
                    break
                self._train_step(*next(batches))
                progress.update()

    def get_result(self):
        return dict(
            model=self._evaluated_model(),
            step=self._step,
            num_steps=self.num_steps,
            train_loss=self._mean_train_loss(),
            learning_rate=self._last_learning_rate,
            micro_batch_size=self._micro_batch_size,
            compiled=int(self._compiled),
            peak_memory=peak_memory(self._device),
        )

    def _start(self):
        """A fresh model and optimizer; what the last run held is freed."""
        if TrainingSolver._in_memory is not None:
            TrainingSolver._in_memory._release()
        TrainingSolver._in_memory = self
        release_memory(self._device)
        # For optimizers that draw random numbers, from whichever generator.
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(self._seed)
        self._model = self._make_model()
        self._copy = None
        self._decide_compilation()
        if self._compiled:
            self._compile(self._model)
        roles = self._model.parameter_roles()
        self._optimizer = self.get_optimizer(roles)
        check_optimizer(self._optimizer)
        check_coverage(self._optimizer, self._model)
        say_once(f"{self.name}: " + describe_groups(self._optimizer, roles))
        self._scheduler = LambdaLR(self._optimizer, functools.partial(
            learning_rate_factor, num_steps=self.num_steps,
            warmup_steps=self.warmup_steps, schedule=self.schedule,
            cooldown=self.cooldown,
        ))
        self._step = 0
        self._last_learning_rate = 0.0
        self._loss_sum = torch.zeros((), device=self._device)
        self._loss_count = 0

    def _release(self):
        self._model = self._copy = self._optimizer = self._scheduler = None

    def _evaluated_model(self):
        """The model to evaluate: the one in training, or a copy of it with
        the weights that the optimizer evaluates. benchopt's clock stands still
        meanwhile."""
        if not hasattr(self._optimizer, "eval"):
            return self._model
        if self._copy is None:
            self._copy = self._make_model()
            if self._compiled:
                self._compile(self._copy)
        parameters = list(self._model.parameters())
        saved = [p.detach().clone() for p in parameters]
        self._optimizer.eval()
        assign(self._copy.parameters(), parameters)
        self._optimizer.train()
        assign(parameters, saved)
        return self._copy

    def _train_step(self, inputs, targets):
        """One optimizer step on a batch [rows, sequence_length].

        Nothing here waits for the device.
        """
        self._last_learning_rate = self._scheduler.get_last_lr()[0]
        self._compute_gradients(inputs, targets)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._scheduler.step()
        self._step += 1

    def _compute_gradients(self, inputs, targets):
        """Add up the gradients of the micro-batches, and clip them.

        Returns the mean loss of the batch, a float32 scalar tensor.
        """
        batch_loss = torch.zeros((), device=self._device)
        for loss in self._micro_losses(inputs, targets):
            loss.backward()
            batch_loss += loss.detach()
        if self.max_grad_norm:
            clip_grad_norm_(self._model.parameters(), self.max_grad_norm)
        self._loss_sum += batch_loss
        self._loss_count += 1
        return batch_loss

    def _micro_losses(self, inputs, targets):
        """Yield each micro-batch's share of the mean loss of the batch."""
        size = self._micro_batch_size
        for micro_inputs, micro_targets in zip(
            inputs.split(size), targets.split(size)
        ):
            with autocast(self._device, self._dtype):
                loss = self._model(micro_inputs, micro_targets)
            yield loss * (len(micro_inputs) / len(inputs))

    def _mean_train_loss(self):
        """Since it was last asked for; before the first step, of the
        untrained model on the first batch."""
        if self._loss_count:
            self._train_loss = self._loss_sum.item() / self._loss_count
            self._loss_sum.zero_()
            self._loss_count = 0
        elif self._step == 0:
            with torch.no_grad():
                self._train_loss = sum(
                    loss.item()
                    for loss in self._micro_losses(*self._first_batch())
                )
        return self._train_loss

    def _first_batch(self):
        return next(self._loader.batches(self._device, stop_step=1))

    def _first_micro_batch(self):
        inputs, targets = self._first_batch()
        size = self._micro_batch_size
        return inputs[:size], targets[:size]

    def _decide_compilation(self):
        flops = self._model.flops_per_token(self._loader.sequence_length) * (
            self.num_steps * self._loader.tokens_per_step
        )
        self._compiled, reason = choose_compile(
            self._compile_option, self._device, flops
        )
        say_once(f"{'Compiled' if self._compiled else 'Eager'}: {reason}")

    @staticmethod
    def _compile(model):
        """In place, so that the model is evaluated as it is trained. Without
        a limit shared with other models, past which torch would go on without
        compilation. On a CPU, GELU's tanh is computed from an exponential,
        which takes less than half the time."""
        model.compile(
            dynamic=False, isolate_recompiles=True,
            options={"cpp.use_decompose_tanh": True},
        )

    def _get_state(self):
        """Part of the key under which benchopt caches a run.

        The key covers the files of the components; the results also depend
        on the code they share and on the packages that do the work.
        """
        packages = ["torch"] + [
            # "pip::package~=1.0" without channel and version.
            re.split("[<>=~!@;[ ]", requirement.split("::")[-1])[0]
            for requirement in self.requirements or []
        ]
        return {
            "code": code_hash(),
            "versions": [(name, installed_version(name)) for name in packages],
        }

    def __setstate__(self, state):
        """Nothing to restore: the state is there for the cache key."""


@torch.no_grad()
def assign(targets, sources):
    """Copy tensors into others, one by one."""
    for target, source in zip(targets, sources):
        target.copy_(source)


@functools.cache
def say_once(message):
    """Print a fact about a run, once per process.

    benchopt's progress line ends with a carriage return: start a new one.
    """
    print(f"\n{message}", flush=True)
