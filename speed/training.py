"""Speed of training and evaluation, all variants in one run.

    python -m speed.training
    python -m speed.training --micro-batch 1 --repetitions 5 --json
    python -m speed.training --model gpt2 rotary modern --micro-batch 1
    python -m speed.training --num-devices 2

Every variant has its own process, and so its own peak memory. The variants of
a group take turns, so that drift of the machine's speed affects all alike; the
speed of each is given as a multiple of the first one's. A turn is a warm-up
step and a timed step, after which the process returns its free memory: at full
size, micro-batches of four rows fit into 24 GiB. Training is measured for each
--micro-batch, evaluation for the batch that it uses (with --variants,
everything for each --micro-batch). Of several models, only training is
measured, in the machine's precision, each with its own ceiling.

A step is forward, backward and optimizer on one micro-batch. The ceiling is
the speed of matrix products of the model's own shapes, forward and backward,
measured in the same rounds; GFLOP/s count 6 per weight and token and 12 per
layer, width and position (see flops_per_token of models/transformer.py). On a
GPU, runs use --micro-batch 32. bfloat16 is left out where it would be
emulated, as on a processor with AVX2 alone, unless --variants asks for it.
Hugging Face's model is left out without transformers, or for other models.
"""
import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import statistics
import sys
import time

import torch

from benchmark_utils.hardware.device import KINDS, dtype_name, synchronize
from benchmark_utils.hardware.memory import (
    peak_memory,
    process_memory,
    release_memory,
)
from benchmark_utils.hardware.selection import choose_device, choose_dtype
from benchmark_utils.models.named import MODELS
from speed import devices
from speed.variants import (
    ONLY_GPT2,
    VARIANTS,
    facts,
    flops,
    make_step,
    shape_of,
)

# Options that replace a model's own sizes.
SIZES = {
    "--n-layer": "n_layer", "--n-head": "n_head", "--n-embd": "n_embd",
    "--sequence-length": "context_length",
}
GROUPS = [
    ["plain float32", "transformers", "float32", "float32 compiled",
     "matmul float32"],
    ["plain float32", "bfloat16", "bfloat16 compiled", "matmul bfloat16"],
    ["evaluate float32", "evaluate bfloat16", "evaluate bfloat16 compiled",
     "forward matmul float32", "forward matmul bfloat16"],
]

# Changes to the model, and rows of a micro-batch: how does the cost grow?
SCALING = [
    ({}, 1), ({}, 4), ({"n_layer": 6}, 4), ({"n_layer": 3}, 4),
    ({"n_embd": 384, "n_head": 6}, 4), ({"context_length": 512}, 4),
    ({"context_length": 256}, 4), ({"context_length": 256}, 16),
]


def work(pipe, variant, shape, rows):
    """Time one step at each request; the main function of a process."""
    device, _ = choose_device()
    release_memory(device)
    at_start = process_memory()["own"]
    with contextlib.redirect_stdout(None):
        step = make_step(variant, shape, rows, device)
        step()
    pipe.send("ready")
    # Until the main process closes its end.
    with contextlib.suppress(EOFError):
        while True:
            release_memory(device)
            # A CPU's peak is counted from here; a GPU's includes it.
            held = process_memory()["own"] - at_start
            if KINDS[device.type].peak_memory:
                held = 0
            pipe.recv()
            step()
            synchronize(device)
            start = time.perf_counter()
            step()
            synchronize(device)
            seconds = time.perf_counter() - start
            pipe.send((seconds, held + peak_memory(device)))


def measure(variants, shape, rows, repetitions):
    """Return one row of a table per variant, as dictionaries."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    seconds, peak = {variant: [] for variant in variants}, {}
    try:
        for variant in variants:
            pipe, end = context.Pipe()
            process = context.Process(
                target=work, args=(end, variant, shape, rows), daemon=True
            )
            process.start()
            end.close()
            workers[variant] = pipe, process
            pipe.recv()
        for _ in range(repetitions):
            for variant, (pipe, _) in workers.items():
                pipe.send("go")
                elapsed, peak[variant] = pipe.recv()
                seconds[variant].append(elapsed)
    except (EOFError, BrokenPipeError):
        raise SystemExit(
            f"The process of {variant!r} died; without an error above, for "
            "lack of memory: name fewer --variants."
        ) from None
    for pipe, process in workers.values():
        pipe.close()
        process.join()
    return summarise(variants, shape, rows, seconds, peak)


def summarise(variants, shape, rows, seconds, peak):
    """Return the table of ``measure``, from the seconds of every step of each
    variant and its peak in bytes."""
    length = shape["context_length"]
    rates = {
        variant: flops(variant, shape, rows)
        / statistics.median(seconds[variant]) / 1e9
        for variant in variants
    }
    baseline = statistics.median(seconds[variants[0]])
    table = []
    for variant in variants:
        median = statistics.median(seconds[variant])
        evaluated = variant.startswith("evaluate")
        dtype = "bfloat16" if "bfloat16" in variant else "float32"
        ceiling = rates.get(
            f"{'forward ' if evaluated else ''}matmul {dtype}"
        )
        table.append({
            "variant": variant, "rows": rows, **shape, "seconds": median,
            "fastest": min(seconds[variant]),
            "slowest": max(seconds[variant]),
            "tokens_per_second": rows * length / median,
            "gflops": rates[variant],
            "share_of_ceiling": ceiling and rates[variant] / ceiling,
            "speed_up": baseline / median,
            "peak_mib": peak[variant] / 2**20,
        })
    return table


def possible_groups(native, models=("gpt2",)):
    """Return the groups of variants that this machine computes natively, has
    the package for, and that exist for the model; for several models, one."""
    if len(models) > 1:
        dtype = dtype_name(native)
        return [[dtype, f"{dtype} compiled", f"matmul {dtype}"]]
    absent = set() if models == ("gpt2",) else set(ONLY_GPT2)
    if native != torch.bfloat16:
        absent |= {name for name in VARIANTS if "bfloat16" in name}
    if not importlib.util.find_spec("transformers"):
        absent.add("transformers")
    groups = ([v for v in group if v not in absent] for group in GROUPS)
    return [group for group in groups if len(group) > 1]


def planned_runs(options, shapes, native):
    """Return pairs: rows of a micro-batch, and a group of variants."""
    if options.variants:
        return [(rows, options.variants) for rows in options.micro_batch]
    groups = possible_groups(native, tuple(s["model"] for s in shapes))
    evaluation = groups.pop() if len(shapes) == 1 else []
    runs = [
        (rows, group) for rows in options.micro_batch for group in groups
    ]
    if evaluation:
        tokens = KINDS[choose_device()[0].type].evaluation_tokens
        rows = max(1, tokens // shapes[0]["context_length"])
        runs.append((rows, evaluation))
    return runs


def describe(shape, own):
    """Describe a model in one line: sizes, and ``facts``."""
    return (
        "{model}: {n_layer} layers of width {n_embd}, {n_head} heads, rows of "
        "{context_length} tokens, {num_parameters:,} parameters, first loss "
        "{first_loss:.3f}".format(**shape, **own)
    )


def print_table(title, labels, table):
    print(f"\n{title}, {choose_device()[0]}")
    print(f"{'':28}{'s/step':>8}  {'min-max':15}{'tokens/s':>9}"
          f"{'GFLOP/s':>9}{'ceiling':>9}{'x first':>9}{'peak MiB':>10}")
    for label, row in zip(labels, table, strict=True):
        spread = f"[{row['fastest']:.2f}-{row['slowest']:.2f}]"
        share = row["share_of_ceiling"]
        print(
            f"{label:28}{row['seconds']:8.3f}  {spread:15}"
            f"{row['tokens_per_second']:9.0f}{row['gflops']:9.0f}"
            f"{f'{share:.0%}' if share else '':>9}"
            f"{row['speed_up']:9.2f}{row['peak_mib']:10.0f}"
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Variants: " + "; ".join(
            f"{name} ({what})" for name, what in VARIANTS.items()
        ),
    )
    parser.add_argument("--model", nargs="+", choices=MODELS,
                        default=["gpt2"], metavar="NAME")
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS,
                        metavar="NAME", help="one group; by default, three")
    for name in SIZES:
        parser.add_argument(name, type=int, metavar="N",
                            help="by default, the model's own")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--no-scaling", action="store_true",
                        help="skip the table of sizes, lengths and batches")
    parser.add_argument("--num-devices", type=int, metavar="N",
                        help="instead: see speed/devices.py")
    parser.add_argument("--compiled", action="store_true",
                        help="with --num-devices")
    parser.add_argument("--json", action="store_true",
                        help="print one JSON list instead of tables")
    options = parser.parse_args()
    sizes = {
        name: getattr(options, option.strip("-").replace("-", "_"))
        for option, name in SIZES.items()
    }
    try:
        shapes = [shape_of(model, sizes) for model in options.model]
    except ValueError as error:
        parser.error(str(error))
    native, reason = choose_dtype("auto", choose_device()[0])
    print(f"In {dtype_name(native)}: {reason}.", file=sys.stderr)
    if options.num_devices:
        if len(shapes) > 1:
            parser.error("--num-devices is for one --model at a time.")
        return devices.report(options, shapes[0])
    own = {shape["model"]: facts(shape) for shape in shapes}
    if not options.json:
        for shape in shapes:
            print(describe(shape, own[shape["model"]]))
    tables = []
    for rows, variants in planned_runs(options, shapes, native):
        table = [
            row | own[row["model"]] for shape in shapes
            for row in measure(variants, shape, rows, options.repetitions)
        ]
        tables += table
        if not options.json:
            print_table(f"Micro-batches of {rows} row(s)", [
                f"{row['model']} {row['variant']}" for row in table
            ], table)
    if not options.no_scaling and len(shapes) == 1:
        variant = dtype_name(native)
        table = [
            row for changes, rows in SCALING
            for row in measure(
                [variant], shapes[0] | changes, rows, options.repetitions
            )
        ]
        tables += table
        if not options.json:
            print_table(f"How the cost of a step in {variant} grows", [
                "{n_layer} x {n_embd}, {rows} x {context_length}".format(**row)
                for row in table
            ], table)
    if options.json:
        print(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
