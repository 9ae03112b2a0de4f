"""Short names of solvers and problems: only the parameters that differ."""
import math

import pandas as pd

from benchmark_utils.analysis.columns import (
    DATASET,
    OBJECTIVE,
    PROBLEM,
    SOLVER,
)

SETTINGS = f"{SOLVER}settings"
ABBREVIATIONS = {
    "learning_rate": "lr", "weight_decay": "wd", "num_steps": "steps",
    "warmup_steps": "warmup", "max_grad_norm": "clip",
}


def labels(runs: pd.DataFrame) -> dict[str, str]:
    """Label the solvers of one figure or table.

    Parameters
    ----------
    runs : DataFrame
        Rows with ``solver``, benchopt's full name of a solver, and
        ``p_solver_*``, its parameters.

    Returns
    -------
    labels : dict of str to str
        Full name -> label, sorted by label: "Muon" for the only Muon, "Adam
        lr=0.003" if there is another Adam, "Muon settings=auto" if there is
        one without. No two are the same.
    """
    columns = [name for name in runs.columns if name.startswith(SOLVER)]
    solvers = runs.drop_duplicates("solver").set_index("solver")[columns]
    # A solver with published settings only has values for parameters that
    # were also chosen, so it is labeled among solvers with the same settings.
    groups: dict[tuple[str, str], list[str]] = {}
    for solver, parameters in solvers.iterrows():
        settings = _text(parameters.get(SETTINGS))
        key = family(solver, parameters), settings
        groups.setdefault(key, []).append(solver)
    families = [name for name, _ in groups]
    found = {}
    for (name, settings), members in groups.items():
        if families.count(name) > 1:
            name = f"{name} settings={settings}"
        differing = [
            column for column in columns
            if len({_text(solvers.at[solver, column]) for solver in members})
            > 1
        ]
        for solver in members:
            found[solver] = " ".join([name] + [
                f"{_short(column.removeprefix(SOLVER))}="
                f"{_text(solvers.at[solver, column])}"
                for column in differing
            ])
    # Solvers whose difference is in no column keep their full names.
    texts = list(found.values())
    unique = {
        solver: solver if texts.count(label) > 1 else label
        for solver, label in found.items()
    }
    return dict(sorted(unique.items(), key=lambda item: _natural(item[1])))


def family(solver, parameters):
    """Name a solver without its parameters, or the optimizer that it takes
    from a package by name. ``parameters`` is a row of results."""
    optimizer = parameters.get(f"{SOLVER}optimizer")
    if isinstance(optimizer, str):
        return optimizer
    return solver.partition("[")[0]


def problem_names(evaluations: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Name the problems in results, for menus and titles. Losses and steps
    are comparable only within one of them.

    Returns
    -------
    names : dict of str to (str, str)
        "Simulated", or "Simulated margin=0.1" if there are several, ->
        (dataset, objective). No two are the same.
    """
    columns = [
        name for name in evaluations.columns
        if name.startswith((DATASET, OBJECTIVE))
    ]
    rows = evaluations.drop_duplicates(PROBLEM)
    differing = [
        name for name in columns if rows[name].map(str).nunique() > 1
    ]
    names = {}
    for _, row in rows.sort_values(PROBLEM).iterrows():
        name = " ".join([row["dataset"].partition("[")[0]] + [
            f"{column.removeprefix(DATASET).removeprefix(OBJECTIVE)}="
            f"{row[column]}"
            for column in differing if row.notna()[column]
        ])
        if name in names:
            name = f"{row['dataset']} {row['objective']}"
        names[name] = (row["dataset"], row["objective"])
    return names


def describe(evaluations: pd.DataFrame, problem: str) -> str:
    """Describe what all runs of a figure share, for its second line."""
    target = evaluations["target"].iloc[0]
    size = evaluations["num_parameters"].iloc[0]
    model = evaluations.get(f"{OBJECTIVE}model", pd.Series(["GPT-2"])).iloc[0]
    reached = (evaluations["steps_to_target"] < math.inf).any()
    return (
        f"{problem}, {model} of {shorten(size)} parameters, target "
        f"{target:.4g}{'' if reached else ' (not reached)'}"
    )


def shorten(count):
    """Format a count with three digits: 124 M, 35.7 k."""
    for unit, name in [(1e9, " G"), (1e6, " M"), (1e3, " k")]:
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"


def legends(runs: pd.DataFrame) -> dict[str, str]:
    """Name the solvers in a legend, by label: "Adam (1 of 3 diverged)", or
    the label alone."""
    found = {}
    for label, rows in runs.groupby("label", sort=False):
        diverged = int(rows["diverged"].sum())
        note = f" ({diverged} of {len(rows)} diverged)" if diverged else ""
        found[label] = label + note
    return found


def _short(parameter):
    for name, short in ABBREVIATIONS.items():
        if parameter == name or parameter.endswith(f"_{name}"):
            return parameter.removesuffix(name) + short
    return parameter


def _text(value):
    """Format a value as a user types it; a missing one is None."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return "None"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _natural(label):
    """Sort numbers by size and letters regardless of case: lr=0.003 comes
    before lr=0.01."""
    key = []
    for word in label.replace("=", " ").split():
        try:
            key.append((0, float(word), ""))
        except ValueError:
            key.append((1, 0.0, word.lower()))
    return key
