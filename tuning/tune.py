"""Tune solvers by one protocol, and keep a ledger of every trial.

    python -m tuning.tune tuning/protocol.yml
    python -m tuning.tune tuning/protocol.yml --problem text -s Muon

Trials that the ledger holds already are not run again, so that a tuning that
was broken off is continued. On a processor with the instructions that a row
names, its loss comes back the same. The best setting of each solver is printed
as a line for a run configuration. See docs/tuning.rst.
"""
import argparse
import contextlib
import csv
import io
import math
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from benchopt.benchmark import Benchmark
from benchopt.cli.main import run
from benchopt.results import read_results
from scipy.stats import qmc

ROOT = Path(__file__).resolve().parents[1]
TUNED = ["learning_rate", "weight_decay"]
COLUMNS = [
    "solver", "trial", "seed", *TUNED, "val_loss", "seconds", "torch",
    # Vector instructions of the processor, such as AVX2: sums are rounded
    # differently with others.
    "instructions",
]


def sample(ranges, trials, seed):
    """Settings of a solver: points of a scrambled Sobol sequence.

    Parameters
    ----------
    ranges : dict of str to [low, high]
    trials : int
    seed : int

    Returns
    -------
    settings : list of dict of str to float, rounded to three digits
    """
    low, high = np.log(np.array(list(ranges.values()), float)).T
    points = qmc.Sobol(len(ranges), rng=seed).random(trials)
    return [
        {
            name: float(f"{value:.3g}")
            for name, value in zip(ranges, np.exp(low + point * (high - low)))
        }
        for point in points
    ]


def split_ranges(ranges):
    """The ranges of a solver's entry, which are tuned, and its other values,
    which are fixed."""
    tuned = {k: v for k, v in ranges.items() if isinstance(v, list)}
    return tuned, {k: v for k, v in ranges.items() if k not in tuned}


def parameter_names(component):
    """Names of a component's parameters; benchopt has coupled ones as "a, b".
    """
    return [
        name.strip() for names in component.parameters
        for name in names.split(",")
    ]


def selector(benchmark, solver, protocol, setting):
    """The solver with a setting, as benchopt's command line names it."""
    known, = benchmark.check_solver_patterns([solver], class_only=True)
    _, own = split_ranges(protocol["ranges"][solver])
    parameters = {
        name: value for name, value in (protocol["fixed"] | own).items()
        if name in parameter_names(known)
    } | setting
    options = ",".join(f"{k}={v}" for k, v in parameters.items())
    return f"{solver}[{options}]"


def run_trial(benchmark, solver, protocol, setting, seed):
    """Train once; the last validation loss and the seconds it took."""
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


def read_ledger(path):
    """Rows of the ledger: dict with the columns as str."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path, row):
    """Add a row to the ledger, on disk before the next trial starts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def check_setting(ledger, row, settings):
    """Raise ``ValueError`` if a row of the ledger was drawn from other ranges.
    """
    trial = int(row["trial"])
    recorded = {name: float(row[name]) for name in TUNED if row[name]}
    if recorded not in settings[trial:trial + 1]:
        raise ValueError(
            f"{ledger} has {recorded} for trial {trial} of {row['solver']}: "
            "that is no trial of the protocol as it is now. Remove the rows "
            "of this solver to tune it anew."
        )


def losses_by_trial(rows, solver):
    """The losses of a solver's trials, in the order of the ledger: dict of
    trial to list of float."""
    losses = {}
    for row in rows:
        if row["solver"] == solver:
            losses.setdefault(int(row["trial"]), []).append(
                float(row["val_loss"])
            )
    return losses


def finalists(rows, solver, count):
    """The trials of a solver with the lowest losses of the first seed."""
    losses = losses_by_trial(rows, solver)
    return sorted(losses, key=lambda trial: losses[trial][0])[:count]


def best(rows, solver):
    """The setting with the lowest mean loss, of the trials of a solver that
    were run with the most seeds."""
    losses = losses_by_trial(rows, solver)
    seeds = max(map(len, losses.values()))
    chosen = min(
        (trial for trial in losses if len(losses[trial]) == seeds),
        key=lambda trial: statistics.fmean(losses[trial]),
    )
    row = next(
        row for row in rows
        if (row["solver"], row["trial"]) == (solver, str(chosen))
    )
    return {
        name: float(row[name]) for name in TUNED if row[name]
    }


def tune(benchmark, protocol, solvers):
    """Run the trials of one problem that its ledger lacks, and print the best
    settings.

    Parameters
    ----------
    protocol : dict
        What all problems share, with one problem's ledger, dataset and
        objective: see ``read_protocol``.
    """
    ledger = ROOT / protocol["ledger"]
    first, *others = protocol["seeds"]
    settings = {
        solver: sample(
            split_ranges(protocol["ranges"][solver])[0], protocol["trials"],
            first,
        ) for solver in solvers
    }
    done = set()
    for row in read_ledger(ledger):
        solver, trial = row["solver"], int(row["trial"])
        if solver in solvers:
            check_setting(ledger, row, settings[solver])
        done.add((solver, trial, int(row["seed"])))

    def run_once(solver, trial, seed):
        if (solver, trial, seed) in done:
            return
        setting = settings[solver][trial]
        loss, seconds = run_trial(benchmark, solver, protocol, setting, seed)
        append(ledger, dict(
            solver=solver, trial=trial, seed=seed, val_loss=loss,
            seconds=round(seconds, 1), torch=torch.__version__,
            instructions=torch.backends.cpu.get_cpu_capability(), **setting,
        ))
        print(f"{solver}, trial {trial}, seed {seed}: {setting} {loss:.4f}",
              flush=True)

    for trial in range(protocol["trials"]):
        for solver in solvers:
            run_once(solver, trial, first)
    rows = read_ledger(ledger)
    for seed in others:
        for solver in solvers:
            for trial in finalists(rows, solver, protocol["finalists"]):
                run_once(solver, trial, seed)
    rows = read_ledger(ledger)
    for solver in solvers:
        print("-", selector(benchmark, solver, protocol, best(rows, solver)))


def read_protocol(path):
    """The protocol of each problem: dict of str to dict."""
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
    ranges = next(iter(protocols.values()))["ranges"]
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
    # Tiny models gain nothing from threads, and losses depend on them.
    torch.set_num_threads(1)
    benchmark = Benchmark(ROOT, no_cache=True)
    for problem in arguments.problem or protocols:
        print(f"{problem}:")
        tune(benchmark, protocols[problem], solvers)


if __name__ == "__main__":
    main()
