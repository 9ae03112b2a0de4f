"""Scaling over devices: tokens per second for 1, 2, 4, ... devices.

    python -m speed.training --num-devices 8 --micro-batch 32 --compiled

Every number of devices trains on the same batch, which has one micro-batch per
device of the largest number. Each process has the same number of threads. A
turn is a step of all ranks together, then one "apart": simultaneous, but
without communication. Ranks apart share only the machine, so their share of
linear scaling bounds that of communicating ranks. Times are the slowest
rank's medians.
"""
import json
import multiprocessing
import queue
import socket
import statistics
import time

import torch
import torch.distributed as dist

from benchmark_utils.distributed.world import ALONE, World
from benchmark_utils.hardware.compilation import compile_model
from benchmark_utils.hardware.device import synchronize
from benchmark_utils.hardware.memory import keep_freed_memory
from benchmark_utils.hardware.selection import choose_device, choose_dtype
from benchmark_utils.optimizers.groups import decay_groups
from benchmark_utils.training.trainer import Trainer
from speed.variants import VOCAB_SIZE, build


def sizes(most):
    """List 1, 2, 4, ... and the most."""
    powers = [2**n for n in range(most.bit_length()) if 2**n < most]
    return [*powers, most]


def work(results, rank, size, port, options):
    """Train as one rank, and put its seconds and CPU seconds per step,
    together and apart, into the queue."""
    torch.set_num_threads(options["num_threads"])
    keep_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    device, _ = choose_device()
    world = ALONE
    if size > 1:
        world = World(rank, size)
        world.connect(dist.TCPStore("127.0.0.1", port), device)
    length = options["shape"]["context_length"]
    tokens = torch.randint(
        VOCAB_SIZE, (options["batch_size"] // size, length + 1), device=device
    )
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    model = build(options["shape"]).to(device)
    if options["compiled"]:
        compile_model(model, by_block=size > 1)
    trainers = [
        Trainer(
            model, torch.optim.AdamW(
                decay_groups(model.parameter_roles(), 0.1), lr=6e-4, fused=True
            ), None, lambda step: 1.0, max_grad_norm=1.0,
            micro_batch_size=options["micro_batch_size"],
            dtype=choose_dtype("auto", device)[0], world=each,
        ) for each in (world, ALONE)
    ]
    clocks = time.perf_counter, time.process_time
    # By trainer, then by clock.
    times = [[[], []] for _ in trainers]
    for _ in range(options["repetitions"] + 1):
        for trainer, of_trainer in zip(trainers, times, strict=True):
            world.agree(True)
            synchronize(device)
            starts = [clock() for clock in clocks]
            trainer.train_step(inputs, targets)
            synchronize(device)
            for clock, start, seconds in zip(
                clocks, starts, of_trainer, strict=True
            ):
                seconds.append(clock() - start)
    # The first turn warms up.
    results.put([
        statistics.median(seconds[1:])
        for of_trainer in times for seconds in of_trainer
    ])
    world.agree(True)
    world.close()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def measure(most, options):
    """Return a dict of measurements for each number of devices."""
    context = multiprocessing.get_context("spawn")
    table = []
    for size in sizes(most):
        results, port = context.Queue(), free_port()
        ranks = [
            context.Process(
                target=serve if rank == 0 else work,
                args=(results, rank, size, port, options),
            ) for rank in range(size)
        ]
        for process in ranks:
            process.start()
        seconds, cpu, apart, cpu_apart = map(
            max, zip(*collect(results, ranks), strict=True)
        )
        tokens = options["batch_size"] * options["shape"]["context_length"]
        base = table[0]["seconds"] if table else seconds
        table.append({
            "num_devices": size, "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "share_of_linear": base / seconds / size,
            "share_of_communication": max(0.0, 1 - apart / seconds),
            "cpu_seconds": cpu, "seconds_apart": apart,
            "share_of_linear_apart": base / apart / size,
            "cpu_seconds_apart": cpu_apart,
        })
    return table


def collect(results, processes):
    """Return what each process puts into a queue, once all have ended."""
    reports = []
    while len(reports) < len(processes):
        try:
            reports.append(results.get(timeout=1))
        except queue.Empty:
            if any(process.exitcode for process in processes):
                for process in processes:
                    process.kill()
                raise SystemExit("A process failed; see above.") from None
    for process in processes:
        process.join()
    return reports


def serve(results, rank, size, port, options):
    """Train as rank 0, which has the store of all ranks."""
    store = dist.TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False
    )
    work(results, rank, size, port, options)
    del store


def print_table(title, table):
    print(f"\n{title}, {choose_device()[0]}")
    print(f"{'devices':>15}{'s/step':>9}{'tokens/s':>11}{'of linear':>11}"
          f"{'communication':>15}{'CPU s/rank':>12}")
    for row in table:
        size = row["num_devices"]
        print(
            f"{size:15}{row['seconds']:9.3f}{row['tokens_per_second']:11.0f}"
            f"{row['share_of_linear']:11.0%}"
            f"{row['share_of_communication']:15.0%}{row['cpu_seconds']:12.3f}"
        )
        if size > 1:
            pace = row["tokens_per_second"] * (
                row["seconds"] / row["seconds_apart"]
            )
            print(
                f"{f'{size} apart':>15}{row['seconds_apart']:9.3f}{pace:11.0f}"
                f"{row['share_of_linear_apart']:11.0%}"
                f"{'':15}{row['cpu_seconds_apart']:12.3f}"
            )


def report(arguments, shape):
    """Measure and print the table for speed.training's command line."""
    rows = arguments.micro_batch[-1]
    batch_size = rows * arguments.num_devices
    table = measure(arguments.num_devices, {
        "shape": shape, "batch_size": batch_size, "micro_batch_size": rows,
        "compiled": arguments.compiled,
        "repetitions": arguments.repetitions,
        "num_threads": max(
            1, torch.get_num_threads() // arguments.num_devices
        ),
    })
    if arguments.json:
        print(json.dumps(table, indent=1))
    else:
        print_table(
            f"{shape['model']}, {batch_size} x {shape['context_length']} "
            f"tokens, {shape['n_layer']} layers of width {shape['n_embd']}",
            table,
        )
