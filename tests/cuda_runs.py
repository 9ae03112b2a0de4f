"""Runs of the benchmark on a fake CUDA device, for test_cuda.py.

    python tests/cuda_runs.py FOLDER

prints one line of JSON per run: every solver, compiled models, and every
planted bug. FOLDER is for data and results.
"""
# Before torch.
from speed.fake_cuda.device import FakeCUDA  # isort: skip

import contextlib
import functools
import gc
import inspect
import json
import multiprocessing
import os
import sys
import textwrap
import traceback
from pathlib import Path

import torch
from benchopt.benchmark import Benchmark
from benchopt.results import read_results
from benchopt.runner import run_benchmark
from torch._dynamo.backends.debugging import aot_eager

from benchmark_utils.data.loader import BatchLoader
from benchmark_utils.hardware import compilation, device
from benchmark_utils.models.transformer import Transformer
from benchmark_utils.optimizers.shampoo import Shampoo
from benchmark_utils.solver import TrainingSolver
from benchmark_utils.training import evaluation
from benchmark_utils.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
OBJECTIVE = (
    "nanoGPT[model={model},n_layer=1,n_head=2,n_embd=32,"
    "context_length=32,batch_size=8,"
    "sequence_length=32,val_tokens=256,eval_every=5,micro_batch_size=4,"
    "compile={compile}]"
)
DATASET = "Simulated[train_tokens=5000,val_tokens=2000]"
# Past Shampoo's first change of preconditioners, after five steps.
STEPS = 6
# SOAP's first change of basis would come after ten.
SETTINGS = {"SOAP": ",precondition_frequency=2"}
COMPILED = ["gpt2 compiled", "rotary compiled", "modern compiled"]
BUG_STEPS = 5

# Name: solver, function, text, replacement.
BUGS = {
    "the sum of the losses is on the CPU": (
        "Adam", Trainer.accumulate_gradients,
        "torch.zeros((), device=self.device)", "torch.zeros(())",
    ),
    "a step reads a number back": (
        "Adam", Trainer.accumulate_gradients,
        "batch_loss += loss.detach()", "batch_loss += loss.item()",
    ),
    "targets are left behind": (
        "Adam", BatchLoader.batches,
        "block[:, 1:]", "block[:, 1:].cpu()",
    ),
    "batches are not pinned": (
        "Adam", BatchLoader._read, "pin_memory=True", "pin_memory=False",
    ),
    "a copy is waited for": (
        "Adam", BatchLoader.batches,
        "non_blocking=True", "non_blocking=False",
    ),
    "autocast is the other device's": (
        "Adam", device.autocast, "device.type", '"cpu"',
    ),
    "a product is in float32": (
        "Adam", device.product_dtype,
        "torch.get_autocast_dtype(device)", "torch.float32",
    ),
    "targets of an evaluation are on the CPU": (
        "Adam", evaluation.evaluate, "model(micro_inputs, micro_targets)",
        "model(micro_inputs, micro_targets.cpu())",
    ),
    "positions are on the CPU": (
        "Adam", Transformer.forward, "position_embedding.weight[:length]",
        "position_embedding.weight[:length].cpu()",
    ),
    "the clock is read too early": (
        "Adam", TrainingSolver.run,
        "synchronize(self.machine.device)", "pass",
    ),
    "an optimizer's state is on the CPU": (
        "Shampoo", Shampoo._average, ", device=p.device", "",
    ),
    "the graph of the model breaks": (
        "gpt2 compiled", Transformer.forward, "x = block(x, rotation)",
        "x = block(x, rotation); torch._dynamo.graph_break()",
    ),
}


def plant(function, text, replacement):
    """Change a line of a function, even where it was imported before."""
    function = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(text) != 1:
        raise LookupError(f"{text!r} is not once in\n{source}")
    namespace = dict(function.__globals__)
    exec(source.replace(text, replacement), namespace)
    function.__code__ = inspect.unwrap(
        namespace[function.__name__]
    ).__code__


def watch(cuda):
    """Label the parts of a step, and read the device's queue whenever
    benchopt reads its clock."""
    accumulate, step = Trainer.accumulate_gradients, Trainer.train_step
    run = TrainingSolver.run
    clock = {"readings": 0, "queued": 0}

    @contextlib.contextmanager
    def labelled(where):
        before, cuda.where = cuda.where, where
        yield
        cuda.where = before

    def labelled_step(trainer, *batch):
        with labelled("step"):
            step(trainer, *batch)

    def labelled_accumulate(trainer, *batch):
        with labelled("gradients"):
            return accumulate(trainer, *batch)

    def watched_run(solver, callback):
        def watched_callback():
            if solver.trainer.step in solver.evaluations:
                clock["readings"] += 1
                clock["queued"] += cuda.queued
            with labelled("evaluation"):
                return callback()

        with labelled("run"):
            run(solver, watched_callback)

    Trainer.accumulate_gradients = labelled_accumulate
    Trainer.train_step, TrainingSolver.run = labelled_step, watched_run
    return clock


def compile_without_kernels(graphs):
    """Trace the model as for a GPU; its graphs run without kernels."""
    compile_ = torch.nn.Module.compile

    def backend(graph, inputs):
        graphs.append("training" if torch.is_grad_enabled() else "evaluation")
        return aot_eager(graph, inputs)

    def traced(model, options, **others):
        # Drop the graphs of the warm-up's model.
        graphs.clear()
        compile_(model, fullgraph=True, backend=backend, **others)

    torch.nn.Module.compile = traced
    # Skip the check for a working compiler.
    compilation.compiler_error = lambda device: ""


def run_once(folder, name):
    """Do one run; return its name and report."""
    solver, *bug = BUGS.get(name, (name,))
    try:
        if bug:
            plant(*bug)
    except LookupError as error:
        return name, {"not planted": str(error)}
    model, compiled = "gpt2", solver in COMPILED
    graphs, report = [], {}
    if compiled:
        compile_without_kernels(graphs)
        solver, model = "Adam", solver.split()[0]
    with FakeCUDA() as cuda:
        clock = watch(cuda)
        try:
            results = run_benchmark(
                ROOT,
                solver_names=[
                    f"{solver}[warmup_steps=2,"
                    f"num_steps={BUG_STEPS if bug else STEPS}"
                    f"{SETTINGS.get(solver, '')}]"
                ],
                objective_filters=[
                    OBJECTIVE.format(model=model, compile=compiled)
                ],
                dataset_names=[DATASET], max_runs=10_000, plot_result=False,
                no_cache=True, show_progress=False,
                output_file=f"{folder}/{os.getpid()}.parquet",
            )
        except Exception as error:
            report["error"] = "".join(traceback.format_exception(error))
    if "error" not in report:
        last = read_results(results).iloc[-1].to_dict()
        report |= {
            column: last[f"objective_{column}"] for column in (
                "step", "device", "dtype", "peak_memory_mib", "compiled",
            )
        }
    return name, report | {
        "waits": dict(cuda.waits), "clock": clock, "graphs": graphs,
        "product_dtypes": {
            where: sorted(map(str, dtypes))
            for where, dtypes in cuda.product_dtypes.items()
        },
    }


def print_reports(run, choose_names, folder, num_processes):
    """Print what ``run`` returns for each name, as a line of JSON."""
    os.environ["BENCHOPT_DATA_HOME"] = folder
    torch.set_num_threads(1)
    solvers = Benchmark(ROOT, no_cache=True).get_solvers()
    # Keep imports out of the garbage collection before each run.
    gc.collect()
    gc.freeze()
    # A process per run, so that no bug outlives its run, forked from this one
    # so that torch is imported once.
    output = os.dup(sys.stdout.fileno())
    with multiprocessing.get_context("fork").Pool(num_processes, os.dup2, (
        sys.stderr.fileno(), sys.stdout.fileno()
    ), maxtasksperchild=1) as pool:
        for report in pool.imap_unordered(run, choose_names(solvers)):
            os.write(output, (json.dumps(report) + "\n").encode())


def main(folder, *names):
    os.environ["BENCHOPT_RAISE_ON_ERROR"] = "1"
    print_reports(
        functools.partial(run_once, folder), lambda solvers: names or [
            *(solver.name for solver in solvers), *COMPILED, *BUGS
        ], folder, num_processes=2,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
