"""A worker, rank 1 of two, on a node with two fake CUDA devices.

    python tests/cuda_rank.py FOLDER SOLVER ...

prints one line of JSON per solver: what the worker did, from the run that rank
0 sends to the last step. torch's "fake" process group replaces communication.
See test_ranks.py.
"""
# Before torch.
from speed.fake_cuda.device import FakeCUDA  # isort: skip

import multiprocessing
import os
import pickle
import sys
import types

import torch.testing._internal.distributed.fake_pg
from benchopt.benchmark import Benchmark
from benchopt.utils.run_context import RunContext

from benchmark_utils.distributed import workers
from benchmark_utils.distributed.world import World
from benchmark_utils.hardware import device
from cuda_runs import ROOT, STEPS, plant, print_reports, watch

RANK, SIZE = 1, 2
OBJECTIVE = dict(
    n_layer=2, n_head=2, n_embd=32, context_length=32, batch_size=8,
    sequence_length=32, val_tokens=256, eval_every=5, micro_batch_size=2,
    compile=False, num_devices=SIZE, checkpoint_every=0,
)
DATASET = dict(train_tokens=5000, val_tokens=2000)
# Instead of a solver: a worker that does not select its device.
LOST = "lost"


def pickled_run(bench, stem):
    """Return the bytes that ``workers.WorkerGroup`` sends."""
    objective = bench.get_benchmark_objective().get_instance(**OBJECTIVE)
    dataset, = bench.check_dataset_patterns(["Simulated"], class_only=True)
    dataset = dataset.get_instance(**DATASET)
    solver_class, = bench.check_solver_patterns(
        [str(ROOT / "solvers" / f"{stem}.py")], class_only=True
    )
    solver = solver_class.get_instance(num_steps=STEPS, warmup_steps=2)
    RunContext().set_run_context(objective, dataset, solver, 0, base_seed=0)
    objective._set_dataset(dataset)
    return pickle.dumps(
        (dataset, objective, solver, solver._run_context, True)
    )


def watch_collectives(cuda):
    """Count the bytes sent from each device, by label and collective."""
    sent = {}
    for kind in ("all_reduce", "broadcast"):
        send = getattr(torch.distributed, kind)

        def counted(tensor, *arguments, _send=send, _kind=kind, **options):
            by_device = sent.setdefault(f"{cuda.where} {_kind}", {})
            num_bytes = by_device.get(str(tensor.device), 0)
            by_device[str(tensor.device)] = num_bytes + tensor.nbytes
            return _send(tensor, *arguments, **options)

        setattr(torch.distributed, kind, counted)
    # Fake tensors have no numbers for ranks to agree on.
    World._of_number = lambda world, number, op: number
    new_group = torch.distributed.new_group
    torch.distributed.new_group = lambda backend, **options: new_group(
        backend="fake", **options
    )
    device.KINDS["cuda"] = device.KINDS["cuda"]._replace(backend="fake")
    return sent


def run_rank_1(stem):
    """Run as rank 1; return the stem and a report."""
    bench = Benchmark(ROOT, no_cache=True)
    # A worker of rank 0 has this name.
    multiprocessing.current_process().name = "MainProcess"
    if stem == LOST:
        plant(workers.run_worker, "torch.cuda.set_device(rank)", "pass")
    with FakeCUDA(num_devices=SIZE) as cuda:
        run = pickled_run(bench, "adamw" if stem == LOST else stem)
        watch(cuda)
        sent = watch_collectives(cuda)
        store = torch.distributed.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )
        # Rank 0's end of this pipe stays open until the run is over.
        reader, writer = os.pipe()
        os.write(writer, run)
        sys.stdin = types.SimpleNamespace(buffer=os.fdopen(reader, "rb"))
        workers.run_worker(RANK, SIZE, store.port)
        return stem, {
            "devices": sorted(map(str, cuda.devices)), "sent": sent,
            "waits": dict(cuda.waits), "num_steps": STEPS,
        }


def main(folder, *stems):
    print_reports(run_rank_1, lambda _: stems, folder, num_processes=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
