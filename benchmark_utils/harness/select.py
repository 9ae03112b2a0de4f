"""Select solvers of a run configuration, and override settings.

    python -m benchmark_utils.harness.select configs/smoke.yml AdamW mine.py

prints a configuration of these two, or writes it to ``--output``. benchopt's
own ``--config FILE -s AdamW`` runs AdamW with its defaults instead: a solver
on the command line replaces all solvers of the configuration, settings
included, and ``-o`` replaces the whole problem. Here, settings in brackets, or
after ``-o``, replace only those of the same name:

    python -m benchmark_utils.harness.select configs/smoke.yml "AdamW[eps=1]"
    python -m benchmark_utils.harness.select configs/quickstart.yml -o log=csv

A solver that is not in the configuration, such as your own file, gets the
number of steps and the schedule that all solvers there share.
"""
import argparse
import difflib
import sys
from pathlib import Path

import click
import yaml
from benchopt.benchmark import Benchmark

from benchmark_utils.console.errors import unreadable

ROOT = Path(__file__).resolve().parents[2]

OPENING, CLOSING = "[({", "])}"
# Parameters of every solver: number of steps and schedule.
OF_ALL = ["num_steps", "warmup_steps", "schedule", "cooldown", "max_grad_norm"]


def split(entry):
    """Split a configuration's entry into its name and its settings, a dict of
    str. Raises ``ValueError`` if the entry has another form."""
    if not isinstance(entry, str):
        raise ValueError(f"{entry} is not written as Name[setting=value,...].")
    name, bracket, rest = entry.partition("[")
    if bracket and not rest.endswith("]"):
        raise ValueError(f"{entry} has no closing bracket.")
    return name, settings_of(rest.removesuffix("]"))


def settings_of(text):
    """Parse ``"a=1,b=[2,3]"`` to a dict of str to str. Raises ``ValueError``
    if a setting is not written as name=value."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in OPENING) - (character in CLOSING)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    settings = {}
    for part in filter(str.strip, parts):
        name, sign, value = part.partition("=")
        if not sign:
            raise ValueError(f"{part!r} is not written as name=value.")
        settings[name.strip()] = value.strip()
    return settings


def joined(name, settings):
    """Format an entry of a configuration: the reverse of ``split``."""
    listed = ",".join(f"{key}={value}" for key, value in settings.items())
    return f"{name}[{listed}]" if listed else name


def select(config, chosen=(), objective=""):
    """Return a configuration with some of its solvers, and others.

    Parameters
    ----------
    config : dict
        A run configuration of benchopt's.
    chosen : sequence of str
        Solvers by name or file, with or without settings in brackets, which
        override those of the configuration. Empty means all solvers.
    objective : str
        Settings of the objective, which override those of the configuration.

    Raises ``ValueError`` if a solver without settings is neither in the
    configuration nor a file.
    """
    entries = [split(entry) for entry in config.get("solver", [])]
    settings = [of_one for _, of_one in entries]
    common = {
        key: value for key, value in (settings[0] if settings else {}).items()
        if key in OF_ALL and all(of_one.get(key) == value
                                 for of_one in settings)
    }
    solvers = []
    for one in chosen:
        name, changed = split(one)
        found = [
            joined(known, of_one | changed) for known, of_one in entries
            if known.lower() == name.lower()
        ]
        if not (found or changed or Path(name).is_file()):
            known = list(dict.fromkeys(name for name, _ in entries))
            close = difflib.get_close_matches(name, known, 1)
            hint = f"Do you mean {close[0]}?" if close else (
                "Another solver is added by its file, such as solvers/lion.py."
            )
            raise ValueError(
                f"{name} is no solver of the configuration, which has "
                f"{', '.join(known)}, and no file. {hint}"
            )
        solvers += found or [joined(name, common | changed)]
    selected = dict(config)
    if solvers:
        # Remove duplicates.
        selected["solver"] = list(dict.fromkeys(solvers))
    if changed := settings_of(objective):
        selected["objective"] = list(dict.fromkeys(
            joined(name, of_one | changed) for name, of_one in
            map(split, config.get("objective", ["nanoGPT"]))
        ))
    return selected


def check(config):
    """Raise ``ValueError`` for solvers and settings that ``benchopt run``
    refuses."""
    benchmark = Benchmark(ROOT)
    try:
        benchmark.check_objective_filters(config.get("objective", []))
        benchmark.check_solver_patterns(config.get("solver", []))
    except click.BadParameter as error:
        message = error.message.replace(":\n- ", ": ").replace("\n- ", ", ")
        raise ValueError(message.replace("\n", " ")) from None
    except ValueError as error:
        raise ValueError(unreadable(error) or error) from None


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benchmark_utils.harness.select",
        description=__doc__.splitlines()[0],
    )
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument(
        "solver", nargs="*", metavar="SOLVER",
        help="a name in the configuration, or a file; with settings in "
        "brackets, which replace those of the configuration. All without.",
    )
    parser.add_argument(
        "-o", "--objective", default="", metavar="SETTINGS",
        help="settings of the objective, such as log=csv,target=3.5",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="new file to write the configuration to",
    )
    options = parser.parse_intermixed_args()
    try:
        config = yaml.safe_load(options.config.read_text())
        if not isinstance(config, dict):
            raise ValueError(f"{options.config} is no run configuration.")
        config = select(config, options.solver, options.objective)
        check(config)
        text = yaml.safe_dump(config, sort_keys=False, width=1000)
        if options.output is None:
            sys.stdout.write(text)
        else:
            # "x" fails if the file exists.
            with options.output.open("x") as file:
                file.write(text)
            print(f"benchopt run . --config {options.output}")
    except FileExistsError:
        parser.error(
            f"--output {options.output} is there already: remove it, or "
            "choose another name."
        )
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
