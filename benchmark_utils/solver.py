"""Base classes of all solvers: a Trainer under benchopt's clock.

A solver only builds its optimizer (``get_optimizer``); what must be the same
for all solvers is here and in the Trainer.
"""
import contextlib
import functools
from typing import Any

import torch
from benchopt import BaseSolver

from benchmark_utils.console.errors import summarized
from benchmark_utils.console.progress import (
    Progress,
    log_once,
    only_warned,
)
from benchmark_utils.distributed.data_parallel import ShardedUpdates
from benchmark_utils.distributed.workers import WorkerGroup, on_all_ranks
from benchmark_utils.distributed.world import ALONE, World
from benchmark_utils.hardware.compilation import choose_compile, compile_model
from benchmark_utils.hardware.device import synchronize
from benchmark_utils.hardware.memory import (
    choose_micro_batch,
    max_micro_batch,
    peak_memory,
    release_memory,
)
from benchmark_utils.hardware.torch_settings import restore_settings
from benchmark_utils.harness.cache_key import (
    Keyed,
    code_hash,
    imported_code,
    versions,
)
from benchmark_utils.harness.problem import Problem, RunOptions
from benchmark_utils.harness.published import PublishedSettings
from benchmark_utils.harness.resume import Resumable
from benchmark_utils.optimizers.combined import CombinedOptimizer
from benchmark_utils.optimizers.groups import describe_groups, rest_groups
from benchmark_utils.training import checkpoints, signals
from benchmark_utils.training.schedules import (
    choose_eval_every,
    evaluation_share,
    evaluation_steps,
    learning_rate_factor,
)
from benchmark_utils.training.trainer import (
    Trainer,
    parameter_sums,
    seed_generators,
)

# Parameters of the model by role.
Roles = dict[str, list[torch.nn.Parameter]]
# The solver whose model, gradients and optimizer state are in memory.
# benchopt keeps every solver of a command alive, and tells none that its run
# has ended: each solver that starts frees what the previous one held.
_holder = None


class TrainingSolver(PublishedSettings, Keyed, BaseSolver):
    """Train a GPT with one optimizer.

    A subclass has a ``name``, ``parameters`` and ``get_optimizer``. Its
    parameters must include

    - ``num_steps``: the horizon, in optimizer steps;
    - ``warmup_steps``, ``schedule``, ``cooldown``: see
      ``benchmark_utils.training.schedules.learning_rate_factor``;
    - ``max_grad_norm``: gradients are clipped to this global norm; 0 is off.

    Every solver also takes ``settings``: see ``PublishedSettings``.
    """

    required_parameters = [
        "num_steps", "warmup_steps", "schedule", "cooldown", "max_grad_norm",
    ]
    # "orthogonalisation" or "eigenbasis" if that computes the update of each
    # hidden matrix, independently of the others: each rank then updates a
    # share of the matrices (distributed/data_parallel.py).
    update_sharding: str | None = None
    # Packages that the solver imports in addition to torch.
    requirements: list[str] = []
    # benchopt's own test trains for a few steps.
    test_config = {"num_steps": 4, "warmup_steps": 1}

    # benchopt's tests ask a solver without a problem for its next evaluation.
    evaluations: list[int] = []
    world: World = ALONE
    trainer: Trainer
    progress: Progress | None = None
    worker_group: WorkerGroup | None = None

    def get_optimizer(self, roles: Roles) -> torch.optim.Optimizer:
        """Build the optimizer: an ordinary one of torch's kind.

        Its ``step()`` finds the gradients in the parameters. A method that
        computes gradients at other weights leaves those in the parameters
        after its step. A method that evaluates other weights has ``eval()``,
        which writes them into the parameters, and ``train()``.

        Parameters
        ----------
        roles : dict of str to list of nn.Parameter
            All parameters of the model by role: "hidden_matrices",
            "embeddings", "head" and "gains_and_biases". A role can be empty.

        Returns
        -------
        optimizer : torch.optim.Optimizer
            With every parameter in exactly one group, at peak learning rate.
        """
        raise ValueError(f"{self.name} must define get_optimizer.")

    @summarized
    def set_objective(self, problem: Problem, options: RunOptions) -> None:
        """Take the problem, and check everything that can be wrong with it.

        Raises
        ------
        ValueError
            Naming the parameter, before anything is computed.
        """
        loader = self._loader = problem.train_loader
        self.take_settings(problem.model, loader.tokens_per_step)
        rows = loader.rank_batch_size
        choose_micro_batch(rows, rows, options.micro_batch_size)
        # A forward pass is a third of a training step's work.
        cost = problem.val_tokens / 3 / loader.tokens_per_step
        eval_every = choose_eval_every(
            options.eval_every, self.num_steps, cost
        )
        # Reads the shards.
        loader.check_horizon(self.num_steps)
        if options.checkpoint_every:
            # A signal before the first step counts too.
            signals.install(signals.EARLY)
        self._make_model, self._options = problem.make_model, options
        self.machine, self.world = problem.machine, problem.world
        self.evaluations = evaluation_steps(self.num_steps, eval_every)
        self._seed = self.get_seed(use_repetition=True)
        log_once(problem.description)
        share = evaluation_share(self.num_steps, eval_every, cost)
        log_once(
            f"{self.num_steps} steps, {len(self.evaluations)} evaluations of "
            f"{problem.val_tokens} tokens, every {eval_every} steps and finer "
            f"at the end: about {share:.0%} of the time is evaluation "
            "(val_tokens and eval_every decide)"
        )

    def get_next(self, stop_val):
        """Return the next step after which the run is evaluated."""
        later = (step for step in self.evaluations if step > stop_val)
        return next(later, stop_val + 1)

    @summarized
    @on_all_ranks
    def warm_up(self):
        """Train throw-away weights, so that one-time costs of a process are
        not timed."""
        self.start()
        for _ in range(2):
            self.trainer.train_step(*self._first_micro_batch())
        if self._options.checkpoint_every:
            # Tried with the whole state of an optimizer, before hours of
            # training depend on it.
            state = self.trainer.state_dict()
            with only_warned(f"{self.name} is trained without checkpoints"):
                checkpoints.size(state)

    @summarized
    @on_all_ranks
    def pre_run_hook(self, callback):
        self.start()
        # Compilation of the fresh model, the first allocation of its
        # activations and what is queued on the device are off the clock.
        loss = self.trainer.accumulate_gradients(*self._first_batch())
        self.trainer.optimizer.zero_grad()
        if (parameter_sums(self.trainer.model) != self._first_sums).any():
            raise ValueError(
                f"{self.name} changes weights in the backward pass, which is "
                "computed in parts and before the first step as well. Change "
                "them in step(), where the gradients of the whole batch are."
            )
        # A forward pass without gradients would be another graph to compile.
        self._train_loss = self.world.mean(loss.item())
        synchronize(self.machine.device)
        self._resumable = Resumable(
            self, callback, self._options.checkpoint_every,
            self._options.resume,
        )

    @summarized
    @on_all_ranks
    def run(self, callback):
        trainer, evaluations = self.trainer, set(self.evaluations)
        with (
            self._resumable,
            contextlib.closing(trainer.batches(self.num_steps)) as batches,
            Progress(self, self._options.log_path) as progress,
        ):
            self.progress = progress
            while True:
                self._resumable.before_callback()
                # benchopt reads its clock first thing in the callback, and
                # evaluates at the steps that get_next gave: the work queued
                # until then must be done.
                if trainer.step in evaluations:
                    synchronize(self.machine.device)
                if not callback() or trainer.step == self.num_steps:
                    break
                trainer.train_step(*next(batches))
                progress.step()
        assert self.worker_group is not None
        self.worker_group.shutdown()

    def get_result(self):
        """Return what the objective evaluates, and the solver's report."""
        trainer = self.trainer
        train_loss = trainer.pop_train_loss()
        if train_loss is not None:
            self._train_loss = train_loss
        memory = peak_memory(self.machine.device)
        return dict(
            eval_weights=trainer.eval_weights,
            discard_checkpoints=self._resumable.discard,
            report=dict(
                step=trainer.step,
                num_steps=self.num_steps,
                # Mean since the last evaluation; at step 0, of the untrained
                # model on the first batch.
                train_loss=self._train_loss,
                learning_rate=trainer.learning_rate,
                weights_moved=int(
                    not parameter_sums(trainer.model).equal(self._first_sums)
                ),
                micro_batch_size=trainer.micro_batch_size,
                compiled=int(self._compiled),
                peak_memory_mib=self.world.maximum(memory) / 2**20,
                times_resumed=self._resumable.times_resumed,
                **self.describe_settings(),
            ),
        )

    def start(self):
        """Free what the last run held, and make a Trainer of a fresh model."""
        global _holder
        if _holder is not None:
            _holder.release()
        _holder = self
        device = self.machine.device
        release_memory(device)
        restore_settings()
        seed_generators(self._seed)
        model = self._make_model()
        self._decide_compilation(model)
        if self._compiled:
            compile_model(model, by_block=self.world.size > 1)
        roles = model.parameter_roles()
        optimizer = self.get_optimizer(roles)
        length = self._loader.sequence_length
        micro_batch_size = self.world.minimum(choose_micro_batch(
            self._loader.rank_batch_size,
            max_micro_batch(length, device, model.activation_bytes()),
            self._options.micro_batch_size,
        ))
        self.trainer = Trainer(
            model, optimizer, self._loader,
            functools.partial(
                learning_rate_factor, num_steps=self.num_steps,
                warmup_steps=self.warmup_steps, schedule=self.schedule,
                cooldown=self.cooldown,
            ),
            max_grad_norm=self.max_grad_norm,
            micro_batch_size=micro_batch_size, dtype=self.machine.dtype,
            world=self.world, sharded_updates=ShardedUpdates(
                self.world, roles["hidden_matrices"], self.update_sharding),
        )
        self._first_sums = parameter_sums(model)
        log_once(
            f"{self._loader.tokens_per_step} tokens per step in micro-batches "
            f"of {micro_batch_size} x {length}"
        )
        log_once(f"{self.name}: {describe_groups(optimizer, roles)}")

    def release(self):
        """Free model and optimizer."""
        trainer = self.__dict__.pop("trainer", None)
        if trainer is not None:
            trainer.close()

    def _first_batch(self):
        return next(self._loader.batches(self.machine.device, stop_step=1))

    def _first_micro_batch(self):
        inputs, targets = self._first_batch()
        size = self.trainer.micro_batch_size
        return inputs[:size], targets[:size]

    def _decide_compilation(self, model):
        flops = model.flops_per_token(self._loader.sequence_length) * (
            self.num_steps * self._loader.tokens_per_step
        )
        compiled, reason = choose_compile(
            self._options.compile, self.machine.device, flops
        )
        self._compiled = self.world.agree(compiled)
        log_once(f"{'Compiled' if compiled else 'Eager'}: {reason}")

    def cache_key(self) -> dict[str, Any]:
        return {
            "code": code_hash(),
            "versions": versions(self.requirements or []),
            "imports": imported_code(self._module_filename),
        }


class MatrixSolver(TrainingSolver):
    """A method for the hidden matrices; AdamW takes the other parameters.

    Its ``get_optimizer`` returns ``with_adamw(...)``. Its parameters include
    those of AdamW: ``aux_learning_rate``, ``aux_beta1``, ``aux_beta2`` and
    ``aux_weight_decay``. Every such solver also takes

    - ``aux_eps``: None is 1e-8;
    - ``embedding_learning_rate``, ``head_learning_rate``, and for gains and
      biases ``gain_learning_rate``: None is ``aux_learning_rate``;
    - ``gain_weight_decay``: None is 0.
    """

    optional_parameters = TrainingSolver.optional_parameters + (
        "aux_eps", "embedding_learning_rate", "head_learning_rate",
        "gain_learning_rate", "gain_weight_decay",
    )

    def with_adamw(
        self, optimizer: torch.optim.Optimizer, roles: Roles, **own: float
    ) -> CombinedOptimizer:
        """Add AdamW for all parameters but the hidden matrices.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            It holds ``roles["hidden_matrices"]``.
        roles : dict of str to list of nn.Parameter
        **own : float
            Values of ``learning_rate``, ``beta1``, ``beta2``, ``eps`` or
            ``weight_decay`` where there is no ``aux_`` parameter of the name.
        """
        own = {"eps": 1e-8} | own

        def aux(name):
            value = getattr(self, f"aux_{name}", None)
            if value is None and name not in own:
                raise ValueError(
                    f"{self.name} lacks aux_{name}, a parameter of AdamW's "
                    "part."
                )
            return own[name] if value is None else value

        groups = rest_groups(
            roles,
            learning_rates={
                "embeddings": self.embedding_learning_rate,
                "head": self.head_learning_rate,
                "gains_and_biases": self.gain_learning_rate,
            },
            weight_decay=aux("weight_decay"),
            gain_weight_decay=self.gain_weight_decay or 0.0,
        )
        return CombinedOptimizer(optimizer, torch.optim.AdamW(
            groups, lr=aux("learning_rate"), eps=aux("eps"),
            betas=(aux("beta1"), aux("beta2")), fused=True,
        ))
