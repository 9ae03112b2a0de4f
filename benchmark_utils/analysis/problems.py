"""Short names of the problems in a file of results, for menus and titles."""
import math

import pandas as pd

from benchmark_utils.analysis.columns import DATASET, OBJECTIVE, PROBLEM
from benchmark_utils.analysis.table import one_problem, plain


def problem_names(evaluations):
    """The problems and what to call them.

    Parameters
    ----------
    evaluations : DataFrame
        See ``table.plain``.

    Returns
    -------
    names : dict of str to (str, str)
        "Simulated", or "Simulated margin=0.1" beside another, -> (dataset,
        objective). No two are the same.
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


def problem_options(results):
    """The names of the problems in benchopt's results: the choices that a
    plot offers."""
    return list(problem_names(plain(results)))


def select(results, problem):
    """The evaluations (see ``table.one_problem``) on one problem of
    benchopt's results, by its name in ``problem_names``."""
    evaluations = plain(results)
    return one_problem(evaluations, *problem_names(evaluations)[problem])


def describe(evaluations, problem):
    """What the runs of a picture have in common: its second line."""
    target = evaluations["target"].iloc[0]
    size = evaluations["num_parameters"].iloc[0]
    model = evaluations.get(f"{OBJECTIVE}model", pd.Series(["GPT-2"])).iloc[0]
    reached = (evaluations["steps_to_target"] < math.inf).any()
    return (
        f"{problem}, {model} of {shorten(size)} parameters, target "
        f"{target:.4g}{'' if reached else ' (not reached)'}"
    )


def shorten(count):
    """A count in three digits: 124 M, 35.7 k."""
    for unit, name in [(1e9, " G"), (1e6, " M"), (1e3, " k")]:
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"


def outcome(runs):
    """How many runs of each solver diverged, for its legend.

    Returns
    -------
    notes : dict of str to str
        Label -> "Adam (1 of 3 diverged)", or the label alone.
    """
    notes = {}
    for label, rows in runs.groupby("label", sort=False):
        diverged = int(rows["diverged"].sum())
        note = f" ({diverged} of {len(rows)} diverged)" if diverged else ""
        notes[label] = label + note
    return notes
