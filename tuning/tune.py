"""Tune solvers by one protocol, and keep a ledger of every trial.

    python -m tuning.tune tuning/protocol.yml
    python -m tuning.tune tuning/protocol.yml --problem text -s Muon

Trials in the ledger are not run again, so an interrupted tuning continues. On
a processor with the instructions that a row names, its loss is reproduced. The
best setting of each solver is printed as a line for a run configuration. See
docs/tuning.rst.
"""
import argparse
import contextlib
import io
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from benchopt.benchmark import Benchmark
from benchopt.cli.main import run
from benchopt.results import read_results
from scipy.stats import qmc

from tuning.ledger import (
    TUNED,
    append,
    best,
    finalists,
    losses_by_trial,
    read_ledger,
)

ROOT = Path(__file__).resolve().parents[1]


def sample(ranges, trials, seed):
    """Draw settings from ranges, dict of str to [low, high]: the points of a
    scrambled Sobol sequence, rounded to three digits."""
    low, high = np.log(np.array(list(ranges.values()), float)).T
    points = qmc.Sobol(len(ranges), rng=seed).random(trials)
    return [
        {
            name: float(f"{value:.3g}")
            for name, value in zip(
                ranges, np.exp(low + point * (high - low)), strict=True
            )
        }
        for point in points
    ]


def split_ranges(ranges):
    """Split a solver's entry into ranges to tune and fixed values."""
    tuned = {k: v for k, v in ranges.items() if isinstance(v, list)}
    return tuned, {k: v for k, v in ranges.items() if k not in tuned}


def parameter_names(component):
    """Return a component's parameters; benchopt couples some as "a, b"."""
    return [
        name.strip() for names in component.parameters
        for name in names.split(",")
    ]


def selector(benchmark, solver, protocol, setting):
    """Write a solver with a setting as benchopt's command line takes it."""
    known, = benchmark.check_solver_patterns([solver], class_only=True)
    _, own = split_ranges(protocol["ranges"][solver])
    parameters = {
        name: value for name, value in (protocol["fixed"] | own).items()
        if name in parameter_names(known)
    } | setting
    options = ",".join(f"{k}={v}" for k, v in parameters.items())
    return f"{solver}[{options}]"


def run_trial(benchmark, solver, protocol, setting, seed):
    """Train once; return the last validation loss and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "trial.parquet"
        with contextlib.redirect_stdout(io.StringIO()) as log:
            run([
                str(ROOT), "-d", protocol["dataset"],
                "-o", protocol["objective"],
                "-s", selector(benchmark, solver, protocol, setting),
                "--seed", str(seed), "--no-timeout",
                "--max-runs", "100000", "--no-cache", "--no-plot",
                "--output", str(output),
            ], standalone_mode=False)
        if not output.exists():
            raise RuntimeError(log.getvalue())
        last = read_results(output).iloc[-1]
    if last.objective_stop_reason == "target":
        raise ValueError(
            f"{solver} reached the target at step {last.objective_step}: "
            "losses can only be compared at the same step. Give the problem a "
            "target that is out of reach."
        )
    loss = math.inf if last.objective_diverged else last.objective_value
    return float(loss), float(last.time)


def settings_so_far(protocol, solver, rows):
    """Return the settings to try a solver with, given its trials so far.

    While its best learning rate of the first seed is the lowest or highest,
    the range moves that way by the protocol's factor ``move_range``, if it has
    one, and gives new trials.
    """
    trials, first = protocol["trials"], protocol["seeds"][0]
    ranges, _ = split_ranges(protocol["ranges"][solver])
    settings = sample(ranges, trials, first)
    losses = losses_by_trial(rows, solver)
    while "move_range" in protocol:
        tried = range(len(settings))
        if not losses.keys() >= set(tried):
            break
        chosen = min(tried, key=lambda trial: losses[trial][0])
        rates = [setting["learning_rate"] for setting in settings]
        if min(rates) < rates[chosen] < max(rates):
            break
        factor = protocol["move_range"]
        if rates[chosen] == min(rates):
            factor = 1 / factor
        moved = [bound * factor for bound in ranges["learning_rate"]]
        ranges = ranges | {"learning_rate": moved}
        settings += sample(ranges, trials, first)
    return settings


def check_settings(ledger, solver, rows, settings):
    """Raise ``ValueError`` if the ledger has a row from other ranges."""
    for row in rows:
        recorded = {name: float(row[name]) for name in TUNED if row[name]}
        trial = int(row["trial"])
        if (
            row["solver"] == solver
            and recorded not in settings[trial:trial + 1]
        ):
            raise ValueError(
                f"{ledger} has {recorded} for trial {trial} of {solver}: that "
                "is no trial of the protocol as it is now. Remove the rows of "
                "this solver to tune it anew."
            )


def missing(protocol, solver, rows, settings):
    """Return a solver's trials that the ledger lacks, as (trial, seed): first
    all of the first seed, then the finalists' other seeds."""
    first, *others = protocol["seeds"]
    done = {
        (int(row["trial"]), int(row["seed"]))
        for row in rows if row["solver"] == solver
    }
    asked = [(trial, first) for trial in range(len(settings))]
    if done.issuperset(asked):
        asked = [
            (trial, seed) for seed in others
            for trial in finalists(rows, solver, protocol["finalists"])
        ]
    return [pair for pair in asked if pair not in done]


def tune(benchmark, protocol, solvers):
    """Run the trials that the ledger of one problem lacks, and print the best
    settings. The protocol is one of ``read_protocol``'s."""
    ledger = ROOT / protocol["ledger"]

    def settings_and_missing(solver):
        rows = read_ledger(ledger)
        settings = settings_so_far(protocol, solver, rows)
        check_settings(ledger, solver, rows, settings)
        return settings, missing(protocol, solver, rows, settings)

    # Refuse rows before any training.
    for solver in solvers:
        settings_and_missing(solver)
    for solver in solvers:
        while True:
            settings, lacking = settings_and_missing(solver)
            if not lacking:
                break
            trial, seed = lacking[0]
            setting = settings[trial]
            loss, seconds = run_trial(
                benchmark, solver, protocol, setting, seed
            )
            append(ledger, dict(
                solver=solver, trial=trial, seed=seed, val_loss=loss,
                seconds=round(seconds, 1), torch=torch.__version__,
                instructions=torch.backends.cpu.get_cpu_capability(),
                **setting,
            ))
            print(f"{solver}, trial {trial}, seed {seed}: {setting} "
                  f"{loss:.4f}", flush=True)
    rows = read_ledger(ledger)
    for solver in solvers:
        print("-", selector(benchmark, solver, protocol, best(rows, solver)))


def read_protocol(path):
    """Read the protocol of each problem: dict of str to dict."""
    protocol = yaml.safe_load(path.read_text())
    problems = protocol.pop("problems")
    return {name: protocol | problem for name, problem in problems.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("protocol", type=Path)
    parser.add_argument(
        "-s", "--solver", action="append",
        help="tune only this one: a key under `ranges` of the protocol",
    )
    parser.add_argument(
        "-p", "--problem", action="append",
        help="tune only on this one: a key under `problems` of the protocol",
    )
    arguments = parser.parse_args()
    protocols = read_protocol(arguments.protocol)
    for problem in arguments.problem or protocols:
        if problem not in protocols:
            parser.error(f"no problem {problem} in {arguments.protocol}")
    protocol = next(iter(protocols.values()))
    ranges = protocol["ranges"]
    solvers = arguments.solver or list(ranges)
    if missing := set(solvers) - set(ranges):
        parser.error(f"no ranges for {missing} in {arguments.protocol}")
    for solver in solvers:
        tuned, _ = split_ranges(ranges[solver])
        if not set(tuned) <= set(TUNED):
            parser.error(
                f"{solver} has ranges for {', '.join(tuned)}; only "
                f"{' and '.join(TUNED)} are tuned."
            )
        if "move_range" in protocol and "learning_rate" not in tuned:
            parser.error(f"{solver} has no range of learning rates to move.")
    # Tiny models gain nothing from threads, and losses depend on them.
    torch.set_num_threads(1)
    benchmark = Benchmark(ROOT, no_cache=True)
    for problem in arguments.problem or protocols:
        print(f"{problem}:")
        tune(benchmark, protocols[problem], solvers)


if __name__ == "__main__":
    main()
