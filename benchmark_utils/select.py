"""Some solvers of a run configuration, with their settings there.

    python -m benchmark_utils.select configs/field.yml AdamW solvers/mine.py

prints a configuration of these two, or writes it to ``--output``. benchopt's
own ``--config FILE -s AdamW`` runs AdamW with its defaults instead: a solver
on the command line replaces all of the configuration's, settings included. A
solver that the configuration hasn't, such as a file of yours, gets what all
solvers there have in common (horizon and schedule), unless it comes with
settings of its own.
"""
import argparse
import sys
from pathlib import Path

import yaml


def split(entry):
    """The name of a configuration's entry, and its settings: list of str.

    Raises ``ValueError`` for an entry that is no text.
    """
    if not isinstance(entry, str):
        raise ValueError(f"{entry} is not written as Name[setting=value,...].")
    name, bracket, settings = entry.partition("[")
    return name, settings.removesuffix("]").split(",") if bracket else []


def select(config, chosen):
    """A configuration with some of its solvers, and others.

    Parameters
    ----------
    config : dict
        A run configuration of benchopt's.
    chosen : list of str
        Solvers by name or file; with settings in brackets, or without.

    Returns
    -------
    config : dict

    Raises
    ------
    ValueError
        If a name is neither in the configuration nor a file.
    """
    entries = {}
    for entry in config.get("solver", []):
        name, settings = split(entry)
        entries.setdefault(name.lower(), []).append((entry, settings))
    rows = [settings for rows in entries.values() for _, settings in rows]
    common = [
        setting for setting in (rows[0] if rows else [])
        if all(setting in settings for settings in rows)
    ]
    solvers = []
    for one in chosen:
        name, settings = split(one)
        if settings:
            solvers.append(one)
        elif name.lower() in entries:
            solvers += [entry for entry, _ in entries[name.lower()]]
        elif Path(name).is_file():
            solvers.append(f"{name}[{','.join(common)}]")
        else:
            known = ", ".join(rows[0][0].partition("[")[0]
                              for rows in entries.values())
            raise ValueError(
                f"{name} is no solver of the configuration, which has "
                f"{known}, and no file."
            )
    return config | {"solver": solvers}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument(
        "solver", nargs="+", help="a name in the configuration, or a file"
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    try:
        config = yaml.safe_load(options.config.read_text())
        config = select(config, options.solver)
        text = yaml.safe_dump(config, sort_keys=False, width=1000)
        if options.output:
            options.output.write_text(text)
        else:
            sys.stdout.write(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
