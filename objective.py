"""Benchmark rules: the problem each solver receives and how it is scored.

    benchopt run . --config configs/quickstart.yml
"""
import contextlib
import functools
import math
import time

from benchopt import BaseObjective

# This must be imported before torch.
from benchmark_utils.hardware.threads import choose_threads

# isort: split
from benchmark_utils.console.errors import readable, summarized
from benchmark_utils.console.progress import log, only_warned
from benchmark_utils.data.loader import BatchLoader, validation_loader
from benchmark_utils.distributed.launch import check_launcher, choose_world
from benchmark_utils.hardware.device import device_name, dtype_name
from benchmark_utils.hardware.memory import keep_freed_memory
from benchmark_utils.hardware.selection import Machine
from benchmark_utils.hardware.torch_settings import restore_settings
from benchmark_utils.harness.cache_key import KeyedFiles, versions
from benchmark_utils.harness.problem import Problem, RunOptions
from benchmark_utils.harness.stopping import TargetCriterion
from benchmark_utils.harness.validation import CheckedParameters
from benchmark_utils.models.named import (
    CHOICES,
    architecture,
    describe,
    make_model,
)
from benchmark_utils.models.weights import load_weights, save_weights
from benchmark_utils.training.evaluation import evaluate, finite_or_inf

# Parameters that do not define the problem, so its name leaves them out.
UNNAMED = "checkpoint_every", "resume", "save_weights", "log"
WEIGHTS = "weights.safetensors"


class Objective(KeyedFiles, CheckedParameters, BaseObjective):
    """Train GPT-2 until its validation loss falls below a target.

    Model, initialisation, order of the tokens, batch and evaluation are fixed.
    The solver chooses the optimizer, its schedule and its number of steps.
    """

    name = "nanoGPT"
    url = "https://github.com/benchopt/benchmark_nanogpt"
    requirements = ["pytorch=2.13", "tqdm", "psutil"]
    min_benchopt_version = "1.10"

    sampling_strategy = "callback"
    stopping_criterion = TargetCriterion()

    file_parameters = ["initial_weights"]
    parameters = {
        # "gpt2" is llm.c's: 124,439,808 parameters with GPT-2's vocabulary.
        # See benchmark_utils/models/named.py for others, and for None.
        "model": ["gpt2"],
        "n_layer": [None], "n_head": [None], "n_embd": [None],
        "context_length": [None], "vocab_multiple": [None],
        "embedding_dtype": [None], "embedding_norm": [None],
        "positions": [None], "norm": [None], "norm_gain": [None],
        "norm_eps": [None], "qk_norm": [None], "fused_qkv": [None],
        "attention_scale": [None], "damped_attention": [None],
        "activation": [None], "bias": [None], "tied_head": [None],
        "head_bias": [None], "logit_cap": [None], "initialisation": [None],
        "loss_gradient": [None],
        # Per step: batch_size sequences of sequence_length tokens, over all
        # ranks. None is the model's context_length.
        "batch_size": [512], "sequence_length": [None],
        # Tokens from the start of the validation shard.
        "val_tokens": [10_485_760],
        # Steps between evaluations; five times finer near the horizon. "auto"
        # is 125, or more where evaluation would take over 10 % of the time.
        "eval_every": ["auto"],
        # Nats per token; None is the dataset's own.
        "target": [None],
        # Whether a run ends at the target, or continues to its last step.
        "stop_at_target": [True],
        # See docs/devices.rst.
        "device": ["auto"],
        # On one node or in a Slurm job: see docs/several_devices.rst.
        "num_devices": ["auto"],
        "dtype": ["auto"], "micro_batch_size": ["auto"], "compile": ["auto"],
        # Steps between checkpoints, or minutes as in "5min"; 0 is off.
        "checkpoint_every": ["auto"], "resume": [True],
        # A safetensors file that every run starts from; with None, the seed
        # initialises the model.
        "initial_weights": [None],
        # Extra outputs: the final weights, and "csv", a row per evaluation.
        "save_weights": [False], "log": [None],
    }

    test_config = {
        "n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32,
        "batch_size": 4, "sequence_length": 32, "val_tokens": 1024,
        "eval_every": 2, "num_devices": 1, "dataset": {"name": "Simulated"},
    }

    def __init__(self, **parameters):
        check_launcher()
        super().__init__(**parameters)

    @classmethod
    def check_together(cls, values):
        context_length = cls._architecture(values).context_length
        length = values["sequence_length"] or context_length
        if length > context_length:
            raise ValueError(
                f"sequence_length={length} is longer than the model's "
                f"context_length={context_length}."
            )
        if values["val_tokens"] % length:
            raise ValueError(
                f"val_tokens={values['val_tokens']} must be a multiple of "
                f"sequence_length={length}."
            )

    @staticmethod
    def _choices(values):
        """Select the parameters that are a model's sizes and switches."""
        return {name: values[name] for name in CHOICES}

    @classmethod
    def _architecture(cls, values):
        return architecture(values["model"], cls._choices(values))

    def __repr__(self):
        """The problem's name in the results: its model, and parameters that
        are not the default and may change the results."""
        values = self._parameters
        words = [describe(values["model"], self._choices(values))]
        words += [
            f"{name}={values[name]}" for name, (default, *_) in
            type(self).parameters.items()
            if name not in ("model", *CHOICES, *UNNAMED)
            and values[name] != default
        ]
        return f"{self.name}[{','.join(words)}]"

    @readable
    def set_data(self, train, val, target, entropy, repeat,
                 bytes_per_token=None):
        """Check the problem as a whole, before anything is computed.

        Parameters
        ----------
        train, val : TokenShards
        target : float or None
            The dataset's own target loss, in nats per token.
        entropy : float or None
            Lower bound of the loss in nats per token, if known.
        repeat : bool
            Whether training may read the data more than once.
        bytes_per_token : float or None
            Mean bytes of text per validation token, if known.
        """
        self._target = target if self.target is None else self.target
        if self._target is None:
            raise ValueError(
                "These data have no target of their own: give one, in nats "
                'per token, such as -o "nanoGPT[target=3.5]".'
            )
        if entropy is not None and self._target < entropy:
            raise ValueError(
                f"target={self._target:g} is below the entropy of the data, "
                f"{entropy:.4f} nats per token: no model can reach it."
            )
        model = self._architecture(self._parameters)
        length = self.sequence_length or model.context_length
        self._train_loader = BatchLoader(
            train, self.batch_size, length, repeat=repeat
        )
        self._val_loader = validation_loader(val, self.val_tokens, length)
        tokens = self._train_loader.tokens_per_step
        self._flops = 6 * tokens * model.matrix_weights(train.vocab_size)
        self._num_elements = tokens * model.n_embd
        self._bytes_per_token = bytes_per_token
        if self.initial_weights is not None:
            # Fails if they are not this model's.
            self._make_model()

    @summarized
    def get_objective(self):
        """Return the arguments of ``TrainingSolver.set_objective``."""
        restore_settings()
        keep_freed_memory()
        self._machine = Machine.choose(self.device, self.dtype, self._flops)
        self._world, reason = choose_world(
            self.num_devices, self._machine.device, self.batch_size
        )
        self._num_threads, threads = choose_threads(
            self._num_elements // self._world.size
        )
        # If the folder can't be made, this fails before training.
        self._output(self.save_weights, WEIGHTS)
        self._val_loader.shards.check_token_ids(1)
        return dict(problem=Problem(
            model=self.model, val_tokens=self.val_tokens,
            # Each run gets a fresh model, so runs share no weights.
            make_model=functools.partial(
                self._make_model, self.get_seed(use_repetition=True),
                self._machine.device,
            ),
            train_loader=self._train_loader.for_rank(
                self._world.rank, self._world.size
            ),
            machine=self._machine, world=self._world,
            description=f"{self._machine.describe()}, {self._world} "
            f"({reason}), {threads}",
        ), options=RunOptions(
            eval_every=self.eval_every,
            micro_batch_size=self.micro_batch_size, compile=self.compile,
            checkpoint_every=self.checkpoint_every, resume=self.resume,
            log_path=self._output(self.log, "evaluations.csv"),
        ))

    def _make_model(self, seed=0, device="cpu"):
        model = make_model(
            self.model, self._train_loader.shards.vocab_size, seed,
            tokens_per_step=self._train_loader.tokens_per_step,
            **self._choices(self._parameters),
        )
        if self.initial_weights is not None:
            load_weights(model, self.initial_weights)
        return model.to(device)

    def evaluate_result(self, eval_weights, report, discard_checkpoints=None):
        """Evaluate a model, and return the columns of the results.

        Parameters
        ----------
        eval_weights : function without arguments, returns a context manager
            Within the context, the model has the weights to evaluate.
        report : dict
            The solver's columns: see ``TrainingSolver.get_result``.
        discard_checkpoints : callable
            Not called here.

        Returns
        -------
        row : dict
            Numbers and strings. ``value`` is the validation loss in nats per
            token; inf if it is not finite. ``bits_per_byte`` is the same loss
            where ``bytes_per_token`` is known.
        """
        device, dtype = self._machine.device, self._machine.dtype
        start = time.perf_counter()
        with eval_weights() as model:
            val_loss = evaluate(model, self._val_loader, dtype, self._world)
            num_parameters = sum(p.numel() for p in model.parameters())
        eval_seconds = time.perf_counter() - start
        train_loss = report["train_loss"]
        row = report | dict(
            value=finite_or_inf(val_loss),
            tokens=report["step"] * self._train_loader.tokens_per_step,
            train_loss=finite_or_inf(train_loss),
            target=self._target,
            target_reached=int(val_loss < self._target),
            stop_at_target=int(self.stop_at_target),
            diverged=int(not math.isfinite(val_loss + train_loss)),
            eval_seconds=eval_seconds,
            # Seconds since 1970: tells which runs were trained side by side.
            wall_time=time.time(),
            weights=str(self._output(self.save_weights, WEIGHTS) or ""),
            num_parameters=num_parameters,
            world_size=self._world.size,
            num_threads=self._num_threads,
            device=device_name(device),
            dtype=dtype_name(dtype),
            torch_version=dict(versions([]))["torch"],
        )
        if self._bytes_per_token is not None:
            row["bits_per_byte"] = row["value"] / (
                math.log(2) * self._bytes_per_token
            )
        return row

    def _output(self, is_wanted, name):
        """Return the path of an output of this run, None if not wanted."""
        return self.get_run_output_path() / name if is_wanted else None

    def save_final_results(self, eval_weights, report, discard_checkpoints):
        """Save the weights that were evaluated last, if asked for; benchopt
        then saves the curve."""
        path = self._output(self.save_weights, WEIGHTS)
        if path and self._world.rank == 0:
            with only_warned("no weights are saved"), eval_weights() as model:
                save_weights(model, path)
                log(f"Weights of {report['step']} steps are in {path}")
        discard_checkpoints()

    def get_one_result(self):
        """Return the result of an untrained model, for benchopt's tests."""
        model = self.get_objective()["problem"].make_model()
        return dict(
            eval_weights=lambda: contextlib.nullcontext(model),
            report=dict(step=0, num_steps=1, train_loss=0.0),
        )
