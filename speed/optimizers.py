"""Cost of each optimizer at the shapes of the full model, in one run.

    python -m speed.optimizers
    python -m speed.optimizers -s Muon -s SOAP --layers 12 --seconds 300

Steps and state are measured with the embeddings and one layer, and with the
embeddings and ``--layers`` (2), and extrapolated to the full model. The first
step, which allocates and may do more than the others, is not counted. A method
that preconditions every few steps (its ``precondition_frequency``) is measured
over whole periods. The forward and backward pass of the full model is measured
before and after all optimizers.
"""
import argparse
import statistics
import time
from pathlib import Path

import torch
from benchopt.benchmark import Benchmark

from benchmark_utils.hardware.device import autocast, synchronize
from benchmark_utils.hardware.memory import keep_freed_memory
from benchmark_utils.hardware.selection import choose_device, choose_dtype
from benchmark_utils.models.named import make_model

ROOT = Path(__file__).resolve().parents[1]

VOCAB_SIZE = 50257
FULL_LAYERS = 12


def step_time(solver, num_layers, seconds):
    """Return the seconds of a step on random gradients, the mean over whole
    periods during some seconds, and the bytes of state."""
    device, _ = choose_device("auto")
    model = make_model("gpt2", VOCAB_SIZE, n_layer=num_layers).to(device)
    optimizer = solver.get_optimizer(model.parameter_roles())
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(0)
    gradients = [
        1e-3 * torch.randn(p.shape, generator=generator).to(device)
        for p in parameters
    ]

    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient
    period = getattr(solver, "precondition_frequency", 1)
    optimizer.step()
    times = []
    while not times or sum(times) < seconds:
        for _ in range(period):
            # Some optimizers write into the gradients they are given.
            torch._foreach_mul_(gradients, 0.99)
            synchronize(device)
            start = time.perf_counter()
            optimizer.step()
            synchronize(device)
            times.append(time.perf_counter() - start)
    return statistics.mean(times), state_bytes(optimizer.state_dict())


def state_bytes(state):
    """Count the bytes of all tensors in a nested state, shared ones once."""
    storages = {}

    def visit(value):
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for one in value.values():
                visit(one)
        elif isinstance(value, (list, tuple)):
            for one in value:
                visit(one)

    visit(state)
    return sum(storages.values())


def measure(solver, num_layers, seconds):
    """Return seconds per step and bytes of state of the full model."""
    if num_layers == FULL_LAYERS:
        return step_time(solver, num_layers, seconds)
    (one, one_bytes), (more, more_bytes) = (
        step_time(solver, n, seconds / 2) for n in (1, num_layers)
    )
    share = (FULL_LAYERS - 1) / (num_layers - 1)
    return (
        one + share * max(more - one, 0.0),
        one_bytes + share * (more_bytes - one_bytes),
    )


def forward_backward(repetitions=3):
    """Time the full model's forward and backward pass of 1,024 tokens."""
    device, _ = choose_device("auto")
    dtype, _ = choose_dtype("auto", device)
    model = make_model("gpt2", VOCAB_SIZE).to(device)
    tokens = torch.randint(VOCAB_SIZE, (1, 1025), device=device)
    times = []
    for _ in range(1 + repetitions):
        start = time.perf_counter()
        with autocast(device, dtype):
            loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        loss.item()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "-s", "--solver", action="append",
        help="a solver's name or file; all of the benchmark's by default",
    )
    parser.add_argument(
        "--layers", type=int, default=2,
        help="layers measured; 12 is the full model, nothing extrapolated",
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0,
        help="of steps per solver, at least",
    )
    options = parser.parse_args()
    if not 2 <= options.layers <= FULL_LAYERS:
        parser.error(f"--layers is from 2 to {FULL_LAYERS}")
    keep_freed_memory()
    benchmark = Benchmark(ROOT, no_cache=True)
    solvers = (
        benchmark.check_solver_patterns(options.solver, class_only=True)
        if options.solver else benchmark.get_solvers()
    )
    num_parameters = sum(
        p.numel() for p in make_model("gpt2", VOCAB_SIZE).parameters()
    )
    passes = [forward_backward()]
    rows = []
    for solver_class in solvers:
        if not solver_class.is_installed():
            print(f"{solver_class.name}: not installed")
            continue
        solver = solver_class.get_instance()
        seconds, memory = measure(solver, options.layers, options.seconds)
        rows.append((solver_class.name, seconds, memory / num_parameters))
        print(f"{rows[-1][0]:<22}{1e3 * seconds:>10.0f} ms"
              f"{rows[-1][2]:>8.1f} bytes/parameter", flush=True)
    passes.append(forward_backward())
    per_row = statistics.mean(passes)
    how = (
        "measured" if options.layers == FULL_LAYERS
        else f"extrapolated from 1 and {options.layers} layers"
    )
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}; "
          f"steps {how}. Forward and backward of 1,024 tokens: "
          f"{1e3 * passes[0]:.0f} ms before, {1e3 * passes[1]:.0f} after.\n")
    print(f"{'solver':<22}{'step':>10}{'state':>10}{'k tokens':>12}")
    print(f"{'':<22}{'ms':>10}{'bytes/p.':>10}{'for 10 %':>12}")
    for name, seconds, memory in rows:
        # The batch at which the optimizer takes a tenth of the time.
        tokens = 9 * seconds / per_row * 1024 / 1e3
        print(f"{name:<22}{1e3 * seconds:>10.0f}{memory:>10.1f}"
              f"{tokens:>12.1f}")


if __name__ == "__main__":
    main()
