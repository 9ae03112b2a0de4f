"""Losses of each solver on the tiny problem, recorded to the last bit."""
import functools
import importlib.metadata
import platform
from pathlib import Path

import torch
from benchopt.utils.run_context import RunContext

from conftest import TINY_DATASET, TINY_OBJECTIVE

GOLDEN_LOSSES = Path(__file__).parents[1] / "golden_losses.txt"


@functools.cache
def train_losses(solver_class, bench, eval_every=5):
    """Losses of 20 steps on the tiny problem, at the solver's defaults."""
    objective = bench.get_benchmark_objective().get_instance(
        **TINY_OBJECTIVE | {"eval_every": eval_every}
    )
    dataset, = bench.check_dataset_patterns(["Simulated"], class_only=True)
    solver = solver_class.get_instance(num_steps=20, warmup_steps=2)
    RunContext().set_run_context(objective, None, solver, 0, base_seed=0)
    objective.set_data(**dataset.get_instance(**TINY_DATASET).get_data())
    solver.set_objective(**objective.get_objective())
    solver.pre_run_hook(None)
    losses = []
    solver.run(lambda: losses.append(solver.get_result()["train_loss"]) or 1)
    solver._release()
    return losses[1:]


def where_losses_are_exact():
    """All that losses depend on, to the last bit."""
    cpu = [platform.machine()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        # Virtual machines call very different processors by the same name.
        cpu = [
            line.partition(":")[2].strip()
            for line in info.read_text().partition("\n\n")[0].splitlines()
            if line.startswith(("model", "cpu family", "stepping"))
        ]
    packages = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "pytorch-optimizer", "schedulefree")
    ]
    capability = torch.backends.cpu.get_cpu_capability()
    return ", ".join([*packages, capability, *cpu])


def read_golden_losses():
    lines = GOLDEN_LOSSES.read_text().splitlines()
    where = lines[0].removeprefix("# ")
    table = {}
    for line in lines:
        if line and not line.startswith("#"):
            stem, *losses = line.split()
            table[stem] = [float(loss) for loss in losses]
    return where, table


def write_golden_losses(bench, solver_files):
    lines = [
        f"# {where_losses_are_exact()}",
        "# Training losses of 20 steps on the tiny problem, float32, one",
        "# thread. To record them anew:",
        "#     pytest tests/test_solvers.py --write-golden-losses",
    ]
    for file in solver_files:
        solver, = bench.check_solver_patterns([str(file)], class_only=True)
        losses = train_losses(solver, bench)
        lines.append(" ".join([file.stem, *map(repr, losses)]))
    GOLDEN_LOSSES.write_text("\n".join(lines) + "\n")
