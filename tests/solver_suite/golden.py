"""Losses of each solver, and of AdamW on each model, recorded to the last
bit."""
import functools
import importlib.metadata
import platform
from pathlib import Path

import pytest
import torch
from benchopt.utils.run_context import RunContext

from conftest import TINY_DATASET, TINY_OBJECTIVE

GOLDEN_LOSSES = Path(__file__).parents[1] / "golden_losses.txt"
HEADER = """\
# Training losses of 20 steps on the tiny problem, float32, one thread, on each
# kind of processor they were recorded on. A line is a solver's file, on a very
# small gpt2, or a model, trained by AdamW. To record them anew on yours:
#     pytest tests/test_solvers.py --write-golden-losses
"""
# The smallest named model of each row.
GOLDEN_MODELS = ("gpt2-tiny", "rotary-tiny", "modern-tiny")


def set_up(solver_class, bench, **parameters):
    """An objective, and a Trainer of a solver at its defaults, ready to train
    20 steps on the tiny problem, but for these parameters of the objective."""
    objective = bench.get_benchmark_objective().get_instance(
        **TINY_OBJECTIVE | parameters
    )
    dataset, = bench.check_dataset_patterns(["Simulated"], class_only=True)
    solver = solver_class.get_instance(num_steps=20, warmup_steps=2)
    RunContext().set_run_context(objective, None, solver, 0, base_seed=0)
    objective.set_data(**dataset.get_instance(**TINY_DATASET).get_data())
    solver.set_objective(**objective.get_objective())
    solver.start()
    return objective, solver.trainer


@functools.cache
def train_losses(solver_class, bench, model=None):
    """The training loss of each of the 20 steps, on the tiny problem or, in
    its place, on a named model of its own sizes."""
    own = {} if model is None else {
        "model": model, "n_layer": None, "n_head": None, "n_embd": None,
        "context_length": None,
    }
    _, trainer = set_up(solver_class, bench, **own)
    losses = []
    for step in range(1, 21):
        trainer.train(step)
        losses.append(trainer.pop_train_loss())
    return losses


def processor_and_versions():
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
    """What is recorded: dict of where, to dict of a solver file's stem or a
    model's name, to list of float."""
    tables = {}
    for line in GOLDEN_LOSSES.read_text().splitlines():
        if line.startswith("on "):
            table = tables.setdefault(line.removeprefix("on "), {})
        elif line and not line.startswith("#"):
            stem, *losses = line.split()
            table[stem] = [float(loss) for loss in losses]
    return tables


def check_recorded(name, losses):
    """Skip the test if nothing is recorded by this name; else, losses are the
    recorded ones to the last bit on a processor where they were recorded, and
    agree with all others elsewhere, where rounding differs."""
    recorded = {
        where: table[name] for where, table in read_golden_losses().items()
        if name in table
    }
    if not recorded:
        pytest.skip(f"no losses are recorded for {name}")
    if processor_and_versions() in recorded:
        assert losses == recorded[processor_and_versions()]
    else:
        assert all(agree(losses, others) for others in recorded.values())


def agree(losses, recorded):
    """Whether losses are the recorded ones but for rounding. Steps that jump
    enlarge it: only the first five count."""
    return losses[:5] == pytest.approx(recorded[:5], rel=1e-3)


def write_golden_losses(bench, solver_files):
    """Record them for this kind of processor. Those of others are kept where
    nothing changed: where they are the same here as before, or agree if none
    were recorded here."""
    here = {}
    for file in solver_files:
        solver, = bench.check_solver_patterns([str(file)], class_only=True)
        here[file.stem] = train_losses(solver, bench)
    adamw, = bench.check_solver_patterns(["AdamW"], class_only=True)
    for model in GOLDEN_MODELS:
        here[model] = train_losses(adamw, bench, model)
    tables = read_golden_losses()
    before = tables.get(processor_and_versions(), {})

    def is_valid(stem, losses):
        if stem in before:
            return here.get(stem) == before[stem]
        return stem in here and agree(here[stem], losses)

    kept = {
        where: {
            stem: losses for stem, losses in table.items()
            if is_valid(stem, losses)
        } for where, table in tables.items()
    }
    lines = [HEADER]
    for where, table in (kept | {processor_and_versions(): here}).items():
        lines.append(f"on {where}")
        for stem, losses in table.items():
            lines.append(" ".join([stem, *map(repr, losses)]))
        lines.append("")
    GOLDEN_LOSSES.write_text("\n".join(lines))
